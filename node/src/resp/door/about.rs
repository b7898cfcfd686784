//! Commands about the connection and the node, not about keys.

use super::Door;
use super::execute::{Caller, Outcome};
use crate::keyspace::Keyspace;
use crate::resp::command::{
    COMMANDS, Client, ClientFilter, ClusterCommand, Command, CommandSpec, Credentials, Hello,
    Shutdown, Tail, client_id,
};
use crate::resp::glob;
use crate::resp::reply::Protocol;

const WRONG_PASSWORD: &[u8] = b"WRONGPASS invalid username-password pair or user is disabled.";
const NO_PASSWORD_SET: &[u8] = b"ERR AUTH <password> called without any password configured for \
    the default user. Are you sure your configuration is correct?";
/// The Redis release whose behaviour this door follows; clients choose their dialect by it.
pub(super) const REDIS_VERSION: &str = "7.0.15";

/// A node without peers has no copies elsewhere.
fn without_peers(caller: &mut Caller<'_>, command: ClusterCommand<'_>) -> Outcome {
    if matches!(command, ClusterCommand::Wait { .. }) {
        caller.reply(None, |reply| reply.writer().integer(0));
        return Outcome::Done;
    }
    caller.error(b"ERR this node knows no others; it was started without --peer")
}

impl Door {
    pub(super) fn execute_on_node(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        command: Command<'_>,
    ) -> Outcome {
        match command {
            Command::Ping { message } => caller.reply(None, |reply| match message {
                Some(message) => reply.writer().bulk(message),
                None => reply.writer().pong(),
            }),
            Command::Echo { message } => caller.reply(None, |reply| reply.writer().bulk(message)),
            Command::Hello(hello) => return self.hello(caller, &hello),
            Command::Auth(credentials) => return self.auth(caller, &credentials),
            Command::Client(Client::List { filter }) => {
                let numbers = match filter {
                    ClientFilter::All | ClientFilter::Normal => None,
                    ClientFilter::Nobody => Some(Vec::new()),
                    ClientFilter::Ids(ids) => Some(ids.filter_map(client_id).collect()),
                };
                return self.list_clients(keyspace, caller, numbers);
            }
            Command::Client(client) => return client_command(caller, client),
            Command::CommandList => caller.reply(None, |reply| {
                reply.writer().array_header(COMMANDS.len());
                COMMANDS.iter().for_each(|spec| spec.write_info(&mut reply.writer()));
            }),
            Command::CommandCount => caller.reply(None, |reply| {
                reply.writer().integer(i64::try_from(COMMANDS.len()).unwrap_or(i64::MAX));
            }),
            Command::CommandDocs { names } => command_docs(caller, names),
            Command::Info { sections } => return self.info(keyspace, caller, sections),
            Command::ConfigGet { patterns } => self.config_get(caller, patterns),
            Command::Cluster(command) => return without_peers(caller, command),
            Command::Engine(command) => return self.execute_engine(keyspace, caller, command),
            Command::Mainline(_) => {
                return caller.error(
                    b"ERR this node is not one of BitTorrent's DHT; start it with \
                                      --mode mainline",
                );
            }
            Command::Select => caller.reply(None, |reply| reply.writer().ok()),
            Command::Quit => {
                caller.reply(None, |reply| reply.writer().ok());
                return Outcome::Close;
            }
            Command::Reset => {
                caller.connection.protocol = Protocol::Resp2;
                caller.connection.name.clear();
                caller.connection.authenticated = self.password.is_none();
                caller.reply(None, |reply| reply.writer().simple("RESET"));
            }
            Command::Time => {
                let now_ms = keyspace.now().clock_ms;
                let (seconds, micros) = (now_ms / 1000, now_ms % 1000 * 1000);
                caller.reply(None, |reply| {
                    reply.writer().array_header(2);
                    reply.writer().bulk(seconds.to_string().as_bytes());
                    reply.writer().bulk(micros.to_string().as_bytes());
                });
            }
            Command::Shutdown(Shutdown::Abort) => {
                return caller.error(b"ERR No shutdown in progress.");
            }
            Command::Shutdown(Shutdown::Stop { .. }) => {
                self.wants_shutdown = true;
                return Outcome::Close;
            }
            other => unreachable!("{other:?} is a command on keys"),
        }
        Outcome::Done
    }

    fn is_password(&self, credentials: &Credentials<'_>) -> bool {
        let known = self.password.as_ref();
        known.is_none_or(|password| password.matches(credentials.password))
            && credentials.user == b"default"
    }

    fn auth(&self, caller: &mut Caller<'_>, credentials: &Credentials<'_>) -> Outcome {
        if self.password.is_none() && credentials.user == b"default" {
            return caller.error(NO_PASSWORD_SET);
        }
        if !self.is_password(credentials) {
            return caller.error(WRONG_PASSWORD);
        }
        caller.connection.authenticated = true;
        caller.reply(None, |reply| reply.writer().ok());
        Outcome::Done
    }

    fn hello(&self, caller: &mut Caller<'_>, hello: &Hello<'_>) -> Outcome {
        if let Some(credentials) = &hello.credentials {
            if !self.is_password(credentials) {
                return caller.error(WRONG_PASSWORD);
            }
            caller.connection.authenticated = true;
        }
        if !caller.connection.authenticated {
            return caller.error(
                b"NOAUTH HELLO must be called with the client already authenticated, otherwise \
                  the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the \
                  client and select the RESP protocol version at the same time",
            );
        }
        if let Some(name) = hello.name {
            caller.connection.name = name.to_vec();
        }
        if let Some(protocol) = hello.protocol {
            caller.connection.protocol = protocol;
        }
        let number = i64::try_from(caller.connection.number).unwrap_or(i64::MAX);
        let version = match caller.connection.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        };
        caller.reply(None, |reply| {
            let mut writer = reply.writer();
            writer.map_header(7);
            for (name, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
                writer.bulk(name.as_bytes());
                writer.bulk(value.as_bytes());
            }
            for (name, value) in [("proto", version), ("id", number)] {
                writer.bulk(name.as_bytes());
                writer.integer(value);
            }
            for (name, value) in [("mode", "standalone"), ("role", "master")] {
                writer.bulk(name.as_bytes());
                writer.bulk(value.as_bytes());
            }
            writer.bulk(b"modules");
            writer.array_header(0);
        });
        Outcome::Done
    }

    pub(super) fn client_line(&self, connection: &super::Connection, now_ms: u64) -> String {
        let protocol = match connection.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        };
        let address = self.facts.client.map_or_else(String::new, |address| address.to_string());
        format!(
            "id={} addr={} laddr={address} fd=-1 name={} age={} idle={} flags=N db=0 sub=0 psub=0 \
             ssub=0 multi=-1 qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 obl=0 oll=0 omem={} \
             tot-mem={} events=r cmd={} user=default redir=-1 resp={protocol} lib-name={} \
             lib-ver={}\n",
            connection.number,
            connection.peer,
            String::from_utf8_lossy(&connection.name),
            now_ms.saturating_sub(connection.created_ms) / 1000,
            now_ms.saturating_sub(connection.active_ms) / 1000,
            connection.parser.buffered(),
            connection.output_len(),
            connection.bytes() + connection.sending,
            connection.last_command,
            String::from_utf8_lossy(&connection.library_name),
            String::from_utf8_lossy(&connection.library_version),
        )
    }

    fn config_get(&self, caller: &mut Caller<'_>, patterns: Tail<'_>) {
        let address = self.facts.client;
        let settings = [
            ("appendfsync", "always".to_owned()),
            ("appendonly", "yes".to_owned()),
            ("bind", address.map_or_else(String::new, |address| address.ip().to_string())),
            ("databases", "1".to_owned()),
            ("dir", self.facts.data_dir.clone()),
            ("maxclients", self.limits.connections_max.to_string()),
            ("maxmemory", "0".to_owned()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("port", address.map_or(0, |address| address.port()).to_string()),
            ("proto-max-bulk-len", self.limits.value_bytes_max.to_string()),
            ("save", String::new()),
            ("timeout", "0".to_owned()),
        ];
        let matching: Vec<_> = settings
            .iter()
            .filter(|(name, _)| {
                patterns
                    .clone()
                    .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
            })
            .collect();
        caller.reply(None, |reply| {
            let mut writer = reply.writer();
            writer.map_header(matching.len());
            for (name, value) in matching {
                writer.bulk(name.as_bytes());
                writer.bulk(value.as_bytes());
            }
        });
    }
}

fn client_command(caller: &mut Caller<'_>, client: Client<'_>) -> Outcome {
    match client {
        Client::SetName { name } => caller.connection.name = name.to_vec(),
        Client::SetLibraryName { name } => caller.connection.library_name = name.to_vec(),
        Client::SetLibraryVersion { version } => {
            caller.connection.library_version = version.to_vec();
        }
        Client::GetName => {
            let name = caller.connection.name.clone();
            caller.reply(None, |reply| match name.is_empty() {
                true => reply.writer().null(),
                false => reply.writer().bulk(&name),
            });
            return Outcome::Done;
        }
        Client::Id => {
            let number = i64::try_from(caller.connection.number).unwrap_or(i64::MAX);
            caller.reply(None, |reply| reply.writer().integer(number));
            return Outcome::Done;
        }
        Client::List { .. } => unreachable!("all threads list their clients"),
    }
    caller.reply(None, |reply| reply.writer().ok());
    Outcome::Done
}

fn command_docs(caller: &mut Caller<'_>, names: Tail<'_>) {
    let found: Vec<&CommandSpec> = if names.len() == 0 {
        COMMANDS.iter().collect()
    } else {
        names.filter_map(CommandSpec::by_name).collect()
    };
    caller.reply(None, |reply| {
        reply.writer().map_header(found.len());
        found.iter().for_each(|spec| spec.write_docs(&mut reply.writer()));
    });
}
