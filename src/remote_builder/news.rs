//! News of builds as a client's terminal shows them: one activity for each build, with its lines.

use std::collections::{HashMap, VecDeque};

use narinfo::StorePath;

use crate::escape::{Line, in_one_line};
use crate::nix::{ActivityId, ClientConnection, ClientNews, DaemonError};

/// Builds of one target that are shown at a time: the rest of a log may come when the next build runs.
const SHOWN_MAX: usize = 2;
/// Characters of the state of a wait.
const WAIT_CHARS_MAX: usize = 150;

/// Characters of the name of a phase.
const PHASE_CHARS_MAX: usize = 100;

/// Something to tell about the wait for a target.
#[derive(Clone, Debug)]
pub(super) enum BuildNews {
    /// A derivation is being built.
    Building(StorePath),
    /// A build has printed lines.
    Lines(StorePath, Vec<String>),
    /// A build enters a phase.
    Phase(StorePath, String),
    /// The state of the wait.
    Waiting(String),
    /// A line of text.
    Message(String),
}

/// Activities that a client shows during one request.
pub(super) struct Terminal<'a> {
    /// Numbers that were used on this connection.
    used: &'a mut u64,
    /// Builds that were shown, each with the target that tells of it. Several may need one build.
    owners: HashMap<StorePath, usize>,
    shown: HashMap<usize, VecDeque<(StorePath, ActivityId)>>,
    waiting: HashMap<usize, (String, ActivityId)>,
}

impl<'a> Terminal<'a> {
    pub(super) fn new(used: &'a mut u64) -> Self {
        Self { used, owners: HashMap::new(), shown: HashMap::new(), waiting: HashMap::new() }
    }

    /// Tells news of the target with this number.
    pub(super) async fn tell(
        &mut self,
        client: &mut ClientConnection,
        of: usize,
        news: BuildNews,
    ) -> Result<(), DaemonError> {
        match news {
            BuildNews::Building(drv) => {
                self.show(client, of, drv).await?;
            }
            BuildNews::Lines(drv, lines) => {
                if let Some(id) = self.show(client, of, drv).await? {
                    for line in lines {
                        client.tell(&ClientNews::Line(id, line)).await?;
                    }
                }
            }
            BuildNews::Phase(drv, phase) => {
                if let Some(id) = self.show(client, of, drv).await? {
                    let phase = Line(in_one_line(&phase, PHASE_CHARS_MAX)).to_string();
                    client.tell(&ClientNews::Phase(id, phase)).await?;
                }
            }
            BuildNews::Waiting(state) => {
                let is_building = self.shown.get(&of).is_some_and(|shown| !shown.is_empty());
                let is_told = self.waiting.get(&of).is_some_and(|(told, _)| *told == state);
                if !is_building && !is_told {
                    self.end_wait(client, of).await?;
                    let id = self.next_id();
                    let text = Line(in_one_line(&state, WAIT_CHARS_MAX)).to_string();
                    client.tell(&ClientNews::Waiting { id, text }).await?;
                    self.waiting.insert(of, (state, id));
                }
            }
            BuildNews::Message(text) => client.tell(&ClientNews::Message(Line(text).to_string())).await?,
        }
        Ok(())
    }

    /// Ends all that is shown of a target.
    pub(super) async fn end(&mut self, client: &mut ClientConnection, of: usize) -> Result<(), DaemonError> {
        self.end_wait(client, of).await?;
        for (_, id) in self.shown.remove(&of).unwrap_or_default() {
            client.tell(&ClientNews::Ended(id)).await?;
        }
        Ok(())
    }

    /// The activity of a build, begun where need be; none where another target tells of it, or it was ended.
    async fn show(
        &mut self,
        client: &mut ClientConnection,
        of: usize,
        drv: StorePath,
    ) -> Result<Option<ActivityId>, DaemonError> {
        if let Some(owner) = self.owners.get(&drv) {
            let shown = self.shown.get(&of).filter(|_| *owner == of);
            return Ok(shown.and_then(|shown| shown.iter().find(|(of, _)| *of == drv)).map(|(_, id)| *id));
        }
        self.end_wait(client, of).await?;
        let id = self.next_id();
        self.owners.insert(drv.clone(), of);
        client.tell(&ClientNews::Building { id, drv: drv.clone() }).await?;
        let shown = self.shown.entry(of).or_default();
        shown.push_back((drv, id));
        if shown.len() > SHOWN_MAX
            && let Some((_, oldest)) = shown.pop_front()
        {
            client.tell(&ClientNews::Ended(oldest)).await?;
        }
        Ok(Some(id))
    }

    async fn end_wait(&mut self, client: &mut ClientConnection, of: usize) -> Result<(), DaemonError> {
        match self.waiting.remove(&of) {
            Some((_, id)) => client.tell(&ClientNews::Ended(id)).await,
            None => Ok(()),
        }
    }

    /// A number that no activity of the client itself has: those have the number of its process above them,
    /// too.
    fn next_id(&mut self) -> ActivityId {
        *self.used += 1;
        ActivityId(u64::from(std::process::id()) << 32 | *self.used)
    }
}
