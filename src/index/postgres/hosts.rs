//! The hosts of the setting, and the one of them that takes writes. A host that hangs or is gone keeps nobody
//! waiting: the next one is tried beside it. One that was replaced while it was away is refused, even though
//! it takes writes again: its timeline is older than one that was seen.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::tasks::unfinished;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::config::{Config, Host};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Time after which the next host is tried beside one that has not answered yet.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Timeline of the server, which is a later one after each failover.
pub(super) const TIMELINE: &str = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
/// Refusal of a server, by itself: the driver makes no errors for others.
const REFUSAL: &str = "DO $$ BEGIN RAISE EXCEPTION 'this server was replaced: another one has a later timeline' \
    USING ERRCODE = 'cannot_connect_now'; END $$";

/// A connection, and what is to be polled for it to work.
pub(super) type Connected = (Client, Driver);
type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// The hosts, in the order of the setting.
pub(super) struct DatabaseHosts {
    each: Vec<Config>,
    /// Position of the one that was connected to last.
    latest: AtomicUsize,
    /// Latest timeline that was seen, and when it was seen first.
    timeline: watch::Sender<Option<(String, Instant)>>,
}

impl DatabaseHosts {
    /// The hosts of an address.
    pub(super) fn of(config: &Config) -> Self {
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
        let each = match hosts {
            0 | 1 => vec![config.clone()],
            _ => (0..hosts).map(|at| with_one_host(config, at)).collect(),
        };
        Self { each, latest: AtomicUsize::new(0), timeline: watch::Sender::default() }
    }

    /// Connects to the first host that answers and takes writes, which is most likely the one of last time.
    pub(super) async fn connect(&self, tls: &MakeRustlsConnect) -> Result<Connected, tokio_postgres::Error> {
        let latest = self.latest.load(Ordering::Relaxed);
        let mut left = (0..self.each.len()).map(|at| (latest + at) % self.each.len());
        let (mut trying, mut failure) = (JoinSet::new(), None);
        loop {
            if let Some(at) = left.next() {
                let (config, tls) = (self.each[at].clone(), tls.clone());
                trying.spawn(async move { (at, connected(&config, tls).await) });
            }
            let tried = match left.len() {
                0 => trying.join_next().await,
                _ => match timeout(NEXT_AFTER, trying.join_next()).await {
                    Ok(tried) => tried,
                    Err(_) => continue,
                },
            };
            let (at, outcome) = match tried {
                Some(Ok(tried)) => tried,
                Some(Err(error)) => unfinished(error).await,
                None => match failure {
                    Some(failure) => return Err(failure),
                    // There is a host at least.
                    None => std::future::pending().await,
                },
            };
            match outcome {
                Ok((connected, timeline)) => match self.accept(connected, timeline).await {
                    Ok(connected) => {
                        self.latest.store(at, Ordering::Relaxed);
                        return Ok(connected);
                    }
                    Err(error) => failure = Some(error),
                },
                Err(error) => failure = Some(error),
            }
        }
    }

    /// True if another server has taken over from that of a connection of this moment.
    pub(super) fn is_replaced(&self, connected_at: Instant) -> bool {
        began_after(&self.timeline.borrow(), connected_at)
    }

    /// Notes a timeline as that of a server that was connected to.
    #[cfg(test)]
    pub(super) fn note_timeline(&self, timeline: &str) {
        self.timeline.send_replace(Some((timeline.to_owned(), Instant::now())));
    }

    /// Resolves once another server has taken over from that of a connection of this moment, which may hang.
    pub(super) async fn replaced(&self, connected_at: Instant) {
        let mut timelines = self.timeline.subscribe();
        if timelines.wait_for(|timeline| began_after(timeline, connected_at)).await.is_err() {
            // Nobody connects any more.
            std::future::pending().await
        }
    }

    /// Refuses a server that was replaced. Where there is one host, its name may be another server's by now,
    /// with a timeline of its own.
    async fn accept(
        &self,
        connected: Connected,
        timeline: String,
    ) -> Result<Connected, tokio_postgres::Error> {
        if self.each.len() < 2 {
            return Ok(connected);
        }
        let mut is_older = false;
        self.timeline.send_if_modified(|latest| {
            is_older = latest.as_ref().is_some_and(|(latest, _)| timeline < *latest);
            let is_later = latest.as_ref().is_none_or(|(latest, _)| timeline > *latest);
            if is_later {
                *latest = Some((timeline, Instant::now()));
            }
            is_later
        });
        let (client, mut driver) = connected;
        if is_older {
            driven(&mut driver, client.batch_execute(REFUSAL)).await?;
        }
        Ok((client, driver))
    }
}

/// True of a timeline that was first seen after a connection of this moment.
fn began_after(timeline: &Option<(String, Instant)>, connected_at: Instant) -> bool {
    timeline.as_ref().is_some_and(|(_, since)| connected_at < *since)
}

/// Connects to one host; also gives the timeline of its server.
async fn connected(
    config: &Config,
    tls: MakeRustlsConnect,
) -> Result<(Connected, String), tokio_postgres::Error> {
    let (client, mut driver) = config.connect(tls).await?;
    let row = driven(&mut driver, client.query_one(TIMELINE, &[])).await?;
    let timeline = row.try_get(0)?;
    Ok(((client, driver), timeline))
}

/// Does something with a connection that nobody drives yet.
async fn driven<T>(
    driver: &mut Driver,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, tokio_postgres::Error> {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            message = poll_fn(|context| driver.poll_message(context)) => match message {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return work.await,
            },
        }
    }
}

/// The same address with one host of several.
fn with_one_host(config: &Config, at: usize) -> Config {
    let mut one = Config::new();
    match config.get_hosts().get(at) {
        Some(Host::Tcp(host)) => drop(one.host(host)),
        Some(Host::Unix(folder)) => drop(one.host_path(folder)),
        None => {}
    }
    config.get_hostaddrs().get(at).map(|address| one.hostaddr(*address));
    config.get_ports().get(at).or_else(|| config.get_ports().first()).map(|port| one.port(*port));
    config.get_user().map(|user| one.user(user));
    config.get_password().map(|password| one.password(password));
    config.get_dbname().map(|name| one.dbname(name));
    config.get_options().map(|options| one.options(options));
    config.get_application_name().map(|name| one.application_name(name));
    config.get_connect_timeout().map(|time| one.connect_timeout(*time));
    config.get_tcp_user_timeout().map(|time| one.tcp_user_timeout(*time));
    config.get_keepalives_interval().map(|time| one.keepalives_interval(time));
    config.get_keepalives_retries().map(|number| one.keepalives_retries(number));
    one.keepalives(config.get_keepalives()).keepalives_idle(config.get_keepalives_idle());
    one.ssl_mode(config.get_ssl_mode()).ssl_negotiation(config.get_ssl_negotiation());
    one.channel_binding(config.get_channel_binding());
    one.target_session_attrs(config.get_target_session_attrs());
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_port_and_all_else_of_the_address() {
        let address = "postgres://ondine:secret@one:1,two:2/index?application_name=name&connect_timeout=7\
            &options=-csearch_path%3Dx&target_session_attrs=read-write&keepalives_retries=3&sslmode=require";
        let config: Config = address.parse().expect("an address");
        let hosts = DatabaseHosts::of(&config);
        let expected = ["one:1", "two:2"].map(|host| {
            let one: Config = address.replace("one:1,two:2", host).parse().expect("an address");
            one
        });
        assert_eq!(hosts.each, expected);
        let single: Config = "postgres://ondine@one/index".parse().expect("an address");
        assert_eq!(DatabaseHosts::of(&single).each, [single]);
    }
}
