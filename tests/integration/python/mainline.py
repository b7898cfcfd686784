"""libtorrent against nodes of BitTorrent's DHT: commands as JSON lines on stdin, answers as JSON lines.

Usage: mainline.py LISTEN BOOTSTRAP [SETTINGS]   (an address, host:port with commas between, JSON)

All settings of the session are libtorrent's own but for the addresses, for what would leave this
machine, and for those given. It ends with its stdin.
"""

import hashlib
import json
import sys
import time

import libtorrent as lt

# Seconds that one command may take.
DEADLINE = 60


class Client:
    def __init__(self, listen, bootstrap, settings):
        self.session = lt.session({
            "listen_interfaces": listen,
            "dht_bootstrap_nodes": bootstrap,
            "enable_dht": True,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "alert_mask": lt.alert.category_t.all_categories,
            **settings,
        })
        self.pending = []

    def wait(self, kind, fits=lambda alert: True):
        end = time.monotonic() + DEADLINE
        while True:
            for index, alert in enumerate(self.pending):
                if isinstance(alert, kind) and fits(alert):
                    return self.pending.pop(index)
            if time.monotonic() > end:
                raise TimeoutError(f"no {kind.__name__}")
            self.session.wait_for_alert(250)
            # Alerts live until the next call: what is needed of them is taken at once.
            self.pending = [alert for alert in self.session.pop_alerts() if self.is_wanted(alert)]

    @staticmethod
    def is_wanted(alert):
        return isinstance(alert, (
            lt.dht_bootstrap_alert, lt.dht_put_alert, lt.dht_immutable_item_alert,
            lt.dht_mutable_item_alert, lt.dht_get_peers_reply_alert, lt.dht_announce_alert,
            lt.dht_sample_infohashes_alert, lt.dht_reply_alert,
        ))

    def bootstrap(self):
        self.wait(lt.dht_bootstrap_alert)
        return {"port": self.session.listen_port()}

    def put_immutable(self, value):
        target = self.session.dht_put_immutable_item(value.encode())
        alert = self.wait(lt.dht_put_alert)
        return {"target": str(target), "stored": alert.num_success}

    def get_immutable(self, target):
        self.session.dht_get_immutable_item(lt.sha1_hash(bytes.fromhex(target)))
        alert = self.wait(lt.dht_immutable_item_alert)
        return {"value": text(alert.item)}

    def put_mutable(self, seed, public, value, salt):
        self.session.dht_put_mutable_item(
            expanded(bytes.fromhex(seed)), bytes.fromhex(public), value.encode(), salt.encode())
        alert = self.wait(lt.dht_put_alert)
        return {"stored": alert.num_success, "seq": alert.seq}

    def get_mutable(self, public, salt):
        self.session.dht_get_mutable_item(bytes.fromhex(public), salt.encode())
        best = None
        # One alert for each better version, the last one with all nodes asked.
        while True:
            alert = self.wait(lt.dht_mutable_item_alert)
            best = {"value": text(alert.item), "seq": alert.seq}
            if alert.authoritative:
                return best

    def announce(self, info_hash, port):
        self.session.dht_announce(lt.sha1_hash(bytes.fromhex(info_hash)), port)
        return {}

    def get_peers(self, info_hash):
        self.session.dht_get_peers(lt.sha1_hash(bytes.fromhex(info_hash)))
        alert = self.wait(lt.dht_get_peers_reply_alert)
        return {"peers": sorted(f"{ip}:{port}" for ip, port in alert.peers())}

    def sample(self, address, target):
        ip, port = address.rsplit(":", 1)
        self.session.dht_sample_infohashes((ip, int(port)), lt.sha1_hash(bytes.fromhex(target)))
        alert = self.wait(lt.dht_sample_infohashes_alert)
        return {"samples": sorted(str(sample) for sample in alert.samples), "num": alert.num_infohashes}


def text(item):
    return item.decode() if isinstance(item, bytes) else item


def expanded(seed):
    """The form of a secret key that libtorrent signs with."""
    digest = bytearray(hashlib.sha512(seed).digest())
    digest[0] &= 248
    digest[31] &= 63
    digest[31] |= 64
    return bytes(digest)


def main():
    client = Client(sys.argv[1], sys.argv[2], json.loads((sys.argv[3:] or ["{}"])[0]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = getattr(client, name)(*arguments)
        except Exception as error:  # The other side shows it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
