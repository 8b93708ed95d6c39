//! A server as a remote builder: the side of the daemon in Nix's worker protocol, for a client at the other
//! end of sshd, which starts one process for each connection. Each request becomes requests to the server,
//! which decides all that there is to decide. Holds no state that outlives the connection.

mod add;
mod build;
mod build_sent;
mod nar;
mod news;
mod query;
mod serve;
mod session;

pub use serve::serve;
