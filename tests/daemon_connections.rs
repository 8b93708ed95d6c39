//! Connections to a real Nix daemon that are kept from one build to the next, with the temporary roots of
//! what was built.

use ondine::nix::{Connections, Options, Pool};

use crate::daemon::Nix;
use crate::support::derivations::text_file;

#[tokio::test]
async fn connections_with_roots_are_kept_while_there_are_builds_and_none_that_comes_back_later() {
    for nix in Nix::all() {
        let held = nix.instantiate(&text_file("held", "held"));
        let connections = Connections::new(Pool::new(nix.environment.clone(), Options::default()));
        let with_root = async || {
            let mut daemon = connections.get().await.expect("connected");
            daemon.add_temp_root(&held).await.expect("added");
            daemon
        };
        let next_has_roots = async || connections.get().await.expect("connected").has_temp_roots();
        connections.give_back(with_root().await);
        assert!(!next_has_roots().await, "nothing was built");

        let (after_build, later) = (with_root().await, with_root().await);
        let latest = with_root().await;
        connections.keep(after_build);
        assert!(next_has_roots().await);
        connections.keep(later);
        connections.close();
        connections.give_back(latest);
        assert!(!next_has_roots().await, "the roots have ended with the builds");
    }
}
