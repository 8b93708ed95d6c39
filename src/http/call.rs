//! A request as its handler is given it: matched, decoded, of a known caller who has the right to it.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::{HeaderMap, Version};
use percent_encoding::percent_decode_str;

use super::Service;
use super::address::{Peer, PublicUrl};
use super::pattern::PLACEHOLDERS_MAX;
use super::request_body::RequestBody;
use crate::caller::{Action, Caller, may};
use crate::escape::Line;
use crate::substitute::OnMiss;

/// A request for an endpoint.
pub(super) struct Call<'r> {
    pub(super) service: &'r Service,
    pub(super) caller: Caller,
    /// The other end of the connection; none on the control socket.
    pub(super) peer: Option<Peer>,
    /// Values of the pattern's placeholders, decoded.
    pub(super) arguments: [&'r str; PLACEHOLDERS_MAX],
    /// The decoded path, without `/cached`.
    pub(super) path: &'r str,
    /// The path as it was sent, without `/cached`.
    pub(super) raw_path: &'r str,
    pub(super) query: Option<&'r str>,
    /// Asked for below `/cached/`: a miss is only reported.
    pub(super) cached: bool,
    /// The answer's body is not wanted.
    pub(super) head: bool,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) body: RequestBody,
}

impl Call<'_> {
    /// The cost that a miss may have.
    pub(super) fn on_miss(&self) -> OnMiss {
        match self.caller.address() {
            _ if self.caller.is_relay() => OnMiss::Relayed(self.caller.asker()),
            address if self.head || self.cached => OnMiss::Report(address),
            address if may(&self.caller, Action::Build).is_ok() => match (address, self.caller.grant()) {
                (Some(address), Some(grant)) if grant.is_bound() => {
                    OnMiss::BuildAs(address, Arc::clone(grant))
                }
                _ => OnMiss::Build(address),
            },
            address => OnMiss::Unentitled(address),
        }
    }

    /// The client that reads the answer, and may go on to what it leads to.
    pub(super) fn reader(&self) -> Option<IpAddr> {
        self.caller.address().filter(|_| !self.head)
    }

    /// The cache's address for this client: the public one, else that under which it has asked.
    pub(super) fn client_url(&self) -> PublicUrl {
        let state = &self.service.state;
        let url = state.settings.public_url.clone().or_else(|| self.asked_url());
        url.unwrap_or_else(|| state.url.clone())
    }

    /// The address under which the client has asked, as far as it is known.
    pub(super) fn asked_url(&self) -> Option<PublicUrl> {
        self.peer.and_then(|peer| peer.asked_url(&self.headers))
    }
}

/// Pairs of a query, in their order, each value decoded; `None` for a value that is no UTF-8.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, Option<String>)> {
    let pairs = query.into_iter().flat_map(|query| query.split('&')).filter_map(|one| one.split_once('='));
    pairs.map(|(key, value)| (key, percent_decode_str(value).decode_utf8().ok().map(Into::into)))
}

/// A parameter that a query gives twice with different values, of which none can be what is meant.
pub(super) fn contradicted(query: Option<&str>) -> Option<&str> {
    let pairs: Vec<(&str, Option<String>)> = parameters(query).collect();
    let differs = |(at, (key, value)): (usize, &(&str, Option<String>))| {
        pairs[..at].iter().any(|(other, earlier)| other == key && earlier != value)
    };
    pairs.iter().enumerate().find(|&pair| differs(pair)).map(|(_, (key, _))| *key)
}

/// The text for a parameter that an address does not have, but these.
pub(super) fn unknown_parameter(key: &str, known: &[&str]) -> String {
    format!("there is no parameter {} here, but {}", Line(key), known.join(", "))
}
