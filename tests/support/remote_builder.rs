//! A server as a remote builder: an sshd that leads to `ondine stdio`, and the machines that have every build
//! done there.

use std::path::PathBuf;

use super::cache::Cache;
use super::client::Client;
use super::derivations::Derivation;
use super::process::{Background, Finished, program};
use super::release::Release;
use super::sshd::Sshd;
use super::store::write;

/// A server, and an sshd that leads to it.
pub struct RemoteBuilder {
    pub sshd: Sshd,
    pub cache: Cache,
}

impl RemoteBuilder {
    /// A server whose remote builder has a token with these rights.
    #[track_caller]
    pub fn new(rights: &str) -> RemoteBuilder {
        RemoteBuilder::of(Cache::new(&[]), rights)
    }

    /// The same of this server.
    #[track_caller]
    pub fn of(cache: Cache, rights: &str) -> RemoteBuilder {
        let token_file = cache.store.folder().join("token");
        write(&token_file, &cache.ondine.new_token("builder", rights, &[]));
        let command = format!(
            "{} stdio --server {} --token-file {}",
            program(),
            cache.ondine.url(),
            token_file.display()
        );
        RemoteBuilder { sshd: Sshd::start(&command), cache }
    }

    /// A machine that has every build done by the remote builder.
    pub fn client(&self, release: Release) -> Client {
        let settings = [("builders", &*self.sshd.builder())];
        Client::with_settings(release, &self.cache.store.store_dir(), &settings)
            .with_ssh(&self.sshd.ssh_options())
    }

    /// Copies a derivation to the server, for releases that do not do so themselves.
    pub fn make_known(&self, client: &Client, drv: &str) {
        client.run("nix", &["copy", "--derivation", "--to", &self.sshd.url(), drv]).must_succeed();
    }

    /// Builds a derivation of a client as `nix-build` does.
    pub fn build(&self, client: &Client, release: &Release, derivation: &Derivation) -> Finished {
        self.start_build(client, release, derivation).finish()
    }

    pub fn start_build(&self, client: &Client, release: &Release, derivation: &Derivation) -> Background {
        let drv = client.instantiate(derivation);
        if *release == Release::Host {
            self.make_known(client, &drv);
        }
        client.start("nix-store", &["--realise", &drv])
    }

    pub fn token_file(&self) -> PathBuf {
        self.cache.store.folder().join("token")
    }

    /// Clients that wait for builds.
    pub fn waiting_clients(&self) -> u64 {
        let queue = self.cache.http.get("/api/v1/queue");
        let queue: serde_json::Value = serde_json::from_slice(&queue.body).expect("the queue is JSON");
        let requests = queue["requests"].as_array().expect("requests");
        requests.iter().filter_map(|request| request["clients"].as_u64()).sum()
    }
}
