//! The only way from an evaluator to the network: a SOCKS 5 server (RFC 1928) on a local socket, which
//! connects to the hosts that the settings name and remembers which others were wanted. The evaluator itself
//! can make none but local sockets. An HTTP proxy would not do: libcurl reaches it over TCP alone, but takes
//! a SOCKS server on a local socket since 7.84.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Connections of one evaluator at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Refused hosts that are remembered, and unreached ones.
const NOTES_MAX: usize = 8;
/// Time limit for the evaluator to name its target.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Time limit of a connection.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// The version of SOCKS.
const SOCKS: u8 = 5;
/// The method that wants no password.
const NO_PASSWORD: u8 = 0;
/// The command that opens a connection.
const CONNECT: u8 = 1;
/// Kinds of addresses.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// Answers.
const GRANTED: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;

/// Hosts that stand for others: to which they redirect, or which their short form means.
const COMPANIONS: [(&str, &[&str]); 3] = [
    (
        "github.com",
        &[
            "api.github.com",
            "codeload.github.com",
            "objects.githubusercontent.com",
            "raw.githubusercontent.com",
            "release-assets.githubusercontent.com",
        ],
    ),
    ("channels.nixos.org", &["nixos.org", "releases.nixos.org"]),
    ("nixos.org", &["channels.nixos.org", "releases.nixos.org"]),
];
/// Ports of schemes.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// The hosts that an evaluator may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AllowedHosts {
    hosts: BTreeSet<(String, u16)>,
    /// Ports that are allowed of every host.
    everywhere: BTreeSet<u16>,
}

impl AllowedHosts {
    /// Adds the hosts of an address, or of a prefix of one, as `allowed-uris`, `nix-path` and flake
    /// references have them. What is not on the network adds nothing.
    pub(super) fn add(&mut self, address: &str) {
        let Some((scheme, rest)) = address.split_once(':') else {
            return if !address.is_empty() && !address.starts_with(['/', '.']) {
                // The short name of a flake, for the registry.
                self.add_host("channels.nixos.org", HTTPS);
                self.add_host("github.com", HTTPS);
            };
        };
        let transport = scheme.rsplit('+').next().unwrap_or(scheme);
        let port = match transport {
            "http" => HTTP,
            "https" => HTTPS,
            "flake" => return self.add(rest),
            "channel" => return self.add_host("channels.nixos.org", HTTPS),
            "github" | "gitlab" | "sourcehut" => {
                let usual = match transport {
                    "github" => "github.com",
                    "gitlab" => "gitlab.com",
                    _ => "git.sr.ht",
                };
                let own = rest.split(['?', '&']).find_map(|query| query.strip_prefix("host="));
                return self.add_host(own.unwrap_or(usual), HTTPS);
            }
            _ => return,
        };
        let authority = rest.trim_start_matches('/').split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.is_empty() {
            self.everywhere.insert(port);
            return;
        }
        let written = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
        let (name, port) = written.unwrap_or((host, port));
        self.add_host(name.trim_start_matches('[').trim_end_matches(']'), port);
    }

    fn add_host(&mut self, name: &str, port: u16) {
        let name = name.to_ascii_lowercase();
        if let Some((_, companions)) = COMPANIONS.iter().find(|(host, _)| *host == name) {
            self.hosts.extend(companions.iter().map(|companion| ((*companion).to_owned(), HTTPS)));
        }
        self.hosts.insert((name, port));
    }

    fn allows(&self, name: &str, port: u16) -> bool {
        self.everywhere.contains(&port) || self.hosts.contains(&(name.to_ascii_lowercase(), port))
    }
}

/// The way to the network of one evaluator; closed, with its connections, when dropped.
#[derive(Debug)]
pub(super) struct Gateway {
    folder: tempfile::TempDir,
    task: AbortHandle,
    notes: Arc<Mutex<Notes>>,
}

/// Failed connections, each with its host and port.
#[derive(Debug, Default)]
struct Notes {
    /// Targets that are not allowed.
    refused: BTreeSet<String>,
    /// Targets that did not answer, and why.
    unreached: BTreeSet<String>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    /// Opens the way to these hosts.
    ///
    /// # Errors
    /// There can be no socket in the folder for temporary files.
    pub(super) fn open(reach: &AllowedHosts) -> io::Result<Self> {
        // Not in the state directory: the path of a socket must be short.
        let folder = tempfile::Builder::new().prefix("ondine").tempdir()?;
        let listener = UnixListener::bind(folder.path().join("socks"))?;
        let notes = Arc::<Mutex<Notes>>::default();
        // It ends with the evaluation, whose error says what could not be reached.
        let task = tokio::spawn(accept(listener, reach.clone(), notes.clone())).abort_handle();
        Ok(Self { folder, task, notes })
    }

    /// The variables that have libcurl, and so Nix and Git, take this way.
    pub(super) fn variables(&self) -> [(&'static str, String); 2] {
        let proxy = format!("socks5h://localhost{}", self.socket().display());
        [("ALL_PROXY", proxy.clone()), ("all_proxy", proxy)]
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socks")
    }

    /// Hosts with their ports that were wanted and are not allowed.
    pub(super) fn refused(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).refused.iter().cloned().collect()
    }

    /// Those that are allowed and could not be reached, and why.
    pub(super) fn unreached(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).unreached.iter().cloned().collect()
    }
}

async fn accept(listener: UnixListener, reach: AllowedHosts, notes: Arc<Mutex<Notes>>) {
    let reach = Arc::new(reach);
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        // Its end is seen by the evaluator, which says why it fails.
        connections.spawn(serve(stream, reach.clone(), notes.clone()));
    }
}

async fn serve(mut client: UnixStream, reach: Arc<AllowedHosts>, notes: Arc<Mutex<Notes>>) -> io::Result<()> {
    let (host, port) = timeout(GREETING_MAX, greeting(&mut client)).await??;
    if !reach.allows(&host, port) {
        remember(&notes, |notes| &mut notes.refused, format!("{host}:{port}"));
        return answer(&mut client, NOT_ALLOWED).await;
    }
    let connected = match timeout(CONNECT_MAX, TcpStream::connect((host.as_str(), port))).await {
        Ok(connected) => connected,
        Err(elapsed) => Err(elapsed.into()),
    };
    match connected {
        Ok(mut server) => {
            answer(&mut client, GRANTED).await?;
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        }
        Err(error) => {
            remember(&notes, |notes| &mut notes.unreached, format!("{host}:{port}: {error}"));
            answer(&mut client, UNREACHABLE).await
        }
    }
}

fn remember(notes: &Mutex<Notes>, among: fn(&mut Notes) -> &mut BTreeSet<String>, host: String) {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let hosts = among(&mut notes);
    if hosts.len() < NOTES_MAX {
        hosts.insert(host);
    }
}

/// The host and the port that the client wants.
async fn greeting(client: &mut UnixStream) -> io::Result<(String, u16)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    if client.read_u8().await? != SOCKS {
        return Err(wrong());
    }
    let mut methods = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut methods).await?;
    client.write_all(&[SOCKS, NO_PASSWORD]).await?;
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let [SOCKS, CONNECT, _, kind] = request else { return Err(wrong()) };
    let host = match kind {
        IPV4 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
        IPV6 => std::net::Ipv6Addr::from(client.read_u128().await?).to_string(),
        NAME => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| wrong())?
        }
        _ => return Err(wrong()),
    };
    Ok((host, client.read_u16().await?))
}

/// Answers with no address that it would be bound to.
async fn answer(client: &mut UnixStream, code: u8) -> io::Result<()> {
    client.write_all(&[SOCKS, code, 0, IPV4, 0, 0, 0, 0, 0, 0]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(addresses: &[&str]) -> AllowedHosts {
        let mut reach = AllowedHosts::default();
        addresses.iter().for_each(|address| reach.add(address));
        reach
    }

    #[test]
    fn an_address_allows_its_host_and_port_and_nothing_else() {
        for (address, host, port) in [
            ("http://example.org/", "example.org", 80),
            ("https://EXAMPLE.org/a?b", "example.org", 443),
            ("https://u:p@example.org:8443", "example.org", 8443),
            ("http://[::1]:80/", "::1", 80),
            ("git+https://example.org/x.git", "example.org", 443),
            ("github:NixOS/nixpkgs", "github.com", 443),
            ("github:NixOS/nixpkgs", "codeload.github.com", 443),
            ("github:a/b?host=ghe.example.org", "ghe.example.org", 443),
            ("gitlab:a/b", "gitlab.com", 443),
            ("nixpkgs/nixos-25.05", "channels.nixos.org", 443),
            ("channel:nixos-25.05", "releases.nixos.org", 443),
            ("https://nixos.org/channels", "releases.nixos.org", 443),
            ("https:", "anything.example", 443),
            ("http://", "anything.example", 80),
        ] {
            let reach = reach(&[address]);
            assert!(reach.allows(host, port), "{address} {reach:?}");
            assert!(!reach.allows(host, 22), "{address}");
            assert!(!reach.allows("other.example", 8080), "{address}");
        }
        for address in ["", "/path", "./x", "path:/x", "git+file:///x", "git+ssh://git@example.org/x"] {
            assert_eq!(reach(&[address]), AllowedHosts::default(), "{address}");
        }
        let one = reach(&["https://example.org"]);
        assert!(!one.allows("evil-example.org", 443) && !one.allows("example.org.evil", 443));
    }
}
