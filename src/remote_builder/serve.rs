//! One connection of a client from its greeting to its end: a request after the other, each ended by a reply
//! or an error.

use narinfo::StoreDir;

use super::session::{BuilderSession, NotDone, PathCache};
use crate::escape::Lines;
use crate::nix::{BuildResult, ClientRequest, ClientTarget, DaemonError, NewClient, WireStream};
use crate::remote::Remote;

/// Name that clients show as the version of the daemon.
const NAME: &str = concat!("Ondine ", env!("CARGO_PKG_VERSION"));

/// Serves one client until it closes the connection.
///
/// # Errors
/// With the reason, when the connection had to be ended; the client has been told it where it still listens.
pub async fn serve(remote: Remote, stream: impl WireStream + 'static) -> Result<(), String> {
    let client = match NewClient::greet(stream, NAME).await {
        Ok(client) => client,
        Err(error) => return ended(error),
    };
    let client = match store_dir(&remote).await {
        Ok(store_dir) => client.welcome(store_dir).await,
        Err(reason) => {
            // Without a client there is nobody to tell it to.
            let _ = client.refuse(&reason).await;
            return Err(reason);
        }
    };
    let mut session = match client {
        Ok(client) => BuilderSession { remote, client, paths: PathCache::default(), activities: 0 },
        Err(error) => return ended(error),
    };
    loop {
        let request = match session.client.next_request().await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => return session.lost(error).await,
        };
        match session.answer(request).await {
            Ok(()) => {}
            Err(NotDone::Refused(reason)) => {
                if let Err(error) = session.client.refuse(&Lines(reason).to_string()).await {
                    return ended(error);
                }
            }
            Err(NotDone::Lost(error)) => return session.lost(error).await,
            Err(NotDone::Cut(reason)) => return Err(reason),
        }
    }
}

/// Store directory of the server, which has to answer before a client may ask for anything.
async fn store_dir(remote: &Remote) -> Result<StoreDir, String> {
    let identity = remote.identity().await.map_err(|error| error.to_string())?;
    StoreDir::new(&identity.store_dir).map_err(|error| error.to_string())
}

/// The end of a connection by an error: that a client has gone away is none.
fn ended(error: DaemonError) -> Result<(), String> {
    in_words(error).map_or(Ok(()), Err)
}

/// The error of a connection in words about its client; none where the client has gone away.
fn in_words(error: DaemonError) -> Option<String> {
    match error {
        DaemonError::Closed | DaemonError::Io(_) => None,
        DaemonError::TimedOut { doing, limit } => {
            Some(format!("the client stopped for {} s while {doing}", limit.as_secs()))
        }
        DaemonError::TooLarge { what, size, limit } => {
            Some(format!("the client announced {what} of size {size}; at most {limit} is accepted"))
        }
        DaemonError::Protocol(reason) => Some(format!("the client broke the worker protocol: {reason}")),
        other => Some(other.to_string()),
    }
}

impl BuilderSession {
    /// Ends the connection; the client is told why.
    async fn lost(&mut self, error: DaemonError) -> Result<(), String> {
        let Some(reason) = in_words(error) else { return Ok(()) };
        let _ = self.client.refuse(&Lines(&reason).to_string()).await;
        Err(reason)
    }

    async fn answer(&mut self, request: ClientRequest) -> Result<(), NotDone> {
        match request {
            ClientRequest::IsValidPath(path) => {
                let found = self.find(&path).await?;
                self.client.reply_number(found.is_some().into()).await?;
            }
            ClientRequest::QueryValidPaths(paths) => {
                let valid = self.valid_paths(paths).await?;
                self.client.reply_paths(&valid).await?;
            }
            ClientRequest::QueryPathInfo(path) => {
                let found = self.find(&path).await?;
                self.client.reply_info(found.as_ref().map(|found| &found.path_info)).await?;
            }
            ClientRequest::QueryPathFromHashPart(hash) => {
                let found = self.find_hash(hash).await?;
                self.client.reply_path(found.as_ref().map(|found| &found.path_info.path)).await?;
            }
            ClientRequest::QueryOutputs(drv) => {
                let outputs = self.outputs(&drv).await?;
                self.client.reply_outputs(&outputs).await?;
            }
            ClientRequest::QueryMissing(targets) => {
                let missing = self.missing(&targets).await?;
                self.client.reply_missing(&missing).await?;
            }
            ClientRequest::QueryNothing => self.client.reply_number(0).await?,
            ClientRequest::Acknowledge => self.client.reply_number(1).await?,
            ClientRequest::SetOptions => self.client.done().await?,
            ClientRequest::NarFromPath(path) => self.send_nar(&path).await?,
            ClientRequest::AddToStore { name, method, references } => {
                let added = self.add_contents(name, &method, references).await?;
                self.client.reply_added(&added).await?;
            }
            ClientRequest::AddToStoreNar { info, unchecked } => {
                self.add_path(info, unchecked).await?;
                self.client.done().await?;
            }
            ClientRequest::AddMultipleToStore { unchecked } => {
                self.add_paths(unchecked).await?;
                self.client.done().await?;
            }
            ClientRequest::AddBuildLog(drv) => {
                self.add_log(&drv).await?;
                self.client.reply_number(1).await?;
            }
            ClientRequest::EnsurePath(path) => {
                for (_, result) in self.build(vec![ClientTarget::Path(path)]).await? {
                    must_succeed(&result)?;
                }
                self.client.reply_number(1).await?;
            }
            ClientRequest::BuildPaths { targets, with_results: true } => {
                let results = self.build(targets).await?;
                self.client.reply_results(&results).await?;
            }
            ClientRequest::BuildPaths { targets, with_results: false } => {
                for (_, result) in self.build(targets).await? {
                    must_succeed(&result)?;
                }
                self.client.reply_number(1).await?;
            }
            ClientRequest::BuildDerivation { drv, resolved } => {
                let result = self.build_derivation(&drv, &resolved).await?;
                self.client.reply_result(&drv, &result).await?;
            }
            ClientRequest::Unsupported(what) => {
                return Err(NotDone::Refused(format!(
                    "a remote builder that is an Ondine server does not support {what}"
                )));
            }
        }
        Ok(())
    }
}

fn must_succeed(result: &BuildResult) -> Result<(), NotDone> {
    if result.status.is_success() { Ok(()) } else { Err(NotDone::Refused(result.message.clone())) }
}
