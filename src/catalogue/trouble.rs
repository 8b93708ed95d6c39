//! Classes of evaluation errors, by what evaluators say of them: an error of the source stands until the
//! source changes, one of the machine or the network may be gone in a moment. In doubt it is the source's.

/// Whose an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The source's: the same evaluation fails again.
    Final,
    /// More memory or time than available, by its own fault or that of others on the machine.
    Starved,
    /// The network's, a server's, the daemon's: it may well pass.
    Transient,
}

/// The machine, or its daemon, fails whatever is evaluated.
const MACHINE: [&str; 5] = [
    "cannot connect to socket",
    "daemon disconnected",
    "cannot open connection to remote store",
    "no space left on device",
    "nix-instantiate: not found",
];
/// Text before the words of a source that aborts.
const ABORTED: &str = "evaluation aborted with the following error message";
/// A rule says no, which no other try changes.
const REFUSED: [&str; 4] = [
    ABORTED,
    "the evaluator may not connect to",
    "is forbidden in restricted mode",
    "is not allowed to refer to",
];
/// Signs of memory that was lacking: what evaluators say then, and C++ does.
const MEMORY: [&str; 5] =
    ["out of memory", "bad_alloc", "cannot allocate memory", "failed to expand heap", "too many heap"];
/// Signs of an evaluator that was stopped, by us or by others.
const STOPPED: [&str; 4] =
    ["the evaluator died of it", TIMED_OUT, "signal: 9", "evaluation worker got killed"];
/// The error of an attribute that took too long.
const TIMED_OUT: &str = "(attribute-timeout)";
/// Words of libcurl, Git and Nix about a network or a server that fails.
const NETWORK: [&str; 25] = [
    "it could not connect to",
    "resolve host",
    "resolve proxy",
    "name resolution",
    "connection refused",
    "connection reset",
    "connection timed out",
    "operation timed out",
    "timeout was reached",
    "operation too slow",
    "network is unreachable",
    "no route to host",
    "ssl connect error",
    "connect to server",
    "empty reply",
    "server returned nothing",
    "partial file",
    "failure when receiving data",
    "stream error",
    "http error 408",
    "http error 429",
    "http error 5",
    "returned error: 429",
    "returned error: 5",
    "unexpected end-of-file",
];

/// The class of an error, from its text.
pub(super) fn class(error: &str) -> Class {
    let low = error.to_lowercase();
    let any = |signs: &[&str]| signs.iter().any(|sign| low.contains(sign));
    match () {
        () if any(&REFUSED) => Class::Final,
        () if any(&MACHINE) || any(&NETWORK) => Class::Transient,
        () if any(&MEMORY) || any(&STOPPED) => Class::Starved,
        () => Class::Final,
    }
}

/// True if the machine or its daemon has failed, which is not to be blamed on an attribute.
pub(super) fn is_of_machine(error: &str) -> bool {
    let low = error.to_lowercase();
    // The words of a source may be any.
    !low.contains(ABORTED) && MACHINE.iter().any(|sign| low.contains(sign))
}

/// True if an evaluator was killed, or had too little memory.
pub(super) fn is_killed(error: &str) -> bool {
    class(error) == Class::Starved && !error.contains(TIMED_OUT)
}

/// True if an error is for want of memory.
pub(super) fn is_of_memory(error: &str) -> bool {
    let low = error.to_lowercase();
    MEMORY.iter().any(|sign| low.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_class() {
        for (class_of_it, error) in [
            (Class::Final, "error: hello"),
            (Class::Final, "error: unable to download 'http://a/x': HTTP error 404 ('Not Found')"),
            (Class::Final, "error: access to URI 'http://a/x' is forbidden in restricted mode"),
            (
                Class::Final,
                "error: unable to download 'http://a/x': Can't complete SOCKS5 connection\n\
                 (the evaluator may not connect to a:80: allowed-uris does not name it)",
            ),
            (
                Class::Final,
                "error: evaluation aborted with the following error message: 'daemon disconnected, out of memory'",
            ),
            (Class::Transient, "error: unable to download 'http://a/x': HTTP error 503"),
            (Class::Transient, "error: unable to download 'http://a/x': Couldn't resolve host name (6)"),
            (
                Class::Transient,
                "error: unable to download 'x': HTTP error 200 (curl error: Timeout was reached)",
            ),
            (Class::Transient, "fatal: unable to access 'https://a/': Could not resolve host: a"),
            (Class::Transient, "fatal: unable to access 'https://a/': The requested URL returned error: 502"),
            (
                Class::Transient,
                "error: x\n(it could not connect to a:443: Connection refused (os error 111))",
            ),
            (Class::Transient, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket'"),
            (Class::Transient, "error: Nix daemon disconnected unexpectedly (maybe it crashed?)"),
            (Class::Transient, "error: writing to file: No space left on device"),
            (Class::Starved, "the evaluator died of it (max-memory-bytes?): signal: 9 (SIGKILL)"),
            (Class::Starved, "it was not done after 5m (attribute-timeout)"),
            (Class::Starved, "error: out of memory"),
            (Class::Starved, "terminate called after throwing an instance of 'std::bad_alloc'"),
        ] {
            assert_eq!(class(error), class_of_it, "{error}");
        }
    }
}
