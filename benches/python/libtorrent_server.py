"""A libtorrent node of BitTorrent's DHT to be measured: prints its port, and ends with its stdin.

Usage: libtorrent_server.py IP. Limits that would stop one address from asking much are lifted.
"""

import sys

import libtorrent as lt

session = lt.session({
    "listen_interfaces": f"{sys.argv[1]}:0",
    "dht_bootstrap_nodes": "",
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_ignore_dark_internet": False,
    "dht_block_ratelimit": 100_000_000,
    "dht_upload_rate_limit": 2_000_000_000,
    "dht_max_dht_items": 1_000_000,
    "alert_mask": 0,
})
print(session.listen_port(), flush=True)
sys.stdin.read()
