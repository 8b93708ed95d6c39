//! Events of builds, from the messages of a daemon: it numbers its activities, and a line names the number.

use std::collections::HashMap;

use narinfo::{StoreDir, StorePath};

use super::stderr::{DaemonMessage, Field};

/// The activity of building a derivation; its fields are the derivation, the machine, and two counters.
pub(super) const ACTIVITY_BUILD: u64 = 105;
/// A line that a builder printed.
pub(super) const RESULT_BUILD_LOG_LINE: u64 = 101;
/// A builder entered a phase.
pub(super) const RESULT_SET_PHASE: u64 = 104;
/// A line that a post-build hook printed.
const RESULT_HOOK_LOG_LINE: u64 = 107;

/// Running builds whose lines are told apart; lines of more come without their derivation.
const ACTIVITIES_MAX: usize = 10_000;

/// Something that happened during a build. Texts are as the daemon sent them, with their escape codes; bytes
/// that are not UTF-8 are U+FFFD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// A builder was started.
    Started {
        /// The derivation.
        drv: StorePath,
        /// The remote machine, or empty when it is this one.
        machine: String,
    },
    /// A builder entered a phase.
    Phase {
        /// The derivation.
        drv: Option<StorePath>,
        /// The name of the phase.
        phase: String,
    },
    /// A builder printed a line.
    LogLine {
        /// The derivation.
        drv: Option<StorePath>,
        /// The line, without its end, or its beginning.
        line: String,
        /// Bytes of a very long line that were dropped behind that.
        dropped: u64,
    },
    /// The daemon itself has to say something.
    Message {
        /// One or more lines of the log.
        text: String,
    },
}

/// The builds that run, by the number of their activity, so that a line finds its derivation.
pub(super) struct Activities {
    store_dir: StoreDir,
    builds: HashMap<u64, StorePath>,
}

impl Activities {
    pub(super) fn new(store_dir: StoreDir) -> Self {
        Self { store_dir, builds: HashMap::new() }
    }

    /// The event that a message of the daemon is, if it is one.
    pub(super) fn event(&mut self, news: DaemonMessage) -> Option<BuildEvent> {
        match news {
            DaemonMessage::Message(text) => Some(BuildEvent::Message { text }),
            DaemonMessage::Started { id, kind: ACTIVITY_BUILD, fields } => self.started(id, fields),
            DaemonMessage::Started { .. } => None,
            DaemonMessage::Stopped { id } => {
                self.builds.remove(&id);
                None
            }
            DaemonMessage::Result { id, kind, fields } => {
                let drv = self.builds.get(&id).cloned();
                let field = fields.into_iter().next()?;
                let dropped = field.dropped();
                let text = field.into_text()?;
                match kind {
                    RESULT_BUILD_LOG_LINE => Some(BuildEvent::LogLine { drv, line: text, dropped }),
                    RESULT_SET_PHASE => Some(BuildEvent::Phase { drv, phase: text }),
                    RESULT_HOOK_LOG_LINE => Some(BuildEvent::Message { text }),
                    _ => None,
                }
            }
        }
    }

    fn started(&mut self, id: u64, fields: Vec<Field>) -> Option<BuildEvent> {
        let mut texts = fields.into_iter().map_while(Field::into_text);
        let drv = StorePath::parse_in(&self.store_dir, &texts.next()?).ok()?;
        let machine = texts.next().unwrap_or_default();
        if self.builds.len() < ACTIVITIES_MAX {
            self.builds.insert(id, drv.clone());
        }
        Some(BuildEvent::Started { drv, machine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", "a".repeat(32))).expect("a store path")
    }

    fn activities() -> Activities {
        Activities::new(StoreDir::default())
    }

    fn start(id: u64, drv: &StorePath) -> DaemonMessage {
        let texts = [drv.in_dir(&StoreDir::default()), "ssh://big".into()];
        let fields = texts.map(Field::Text).into_iter().chain([Field::Number(1), Field::Number(1)]).collect();
        DaemonMessage::Started { id, kind: ACTIVITY_BUILD, fields }
    }

    fn line(id: u64) -> DaemonMessage {
        DaemonMessage::Result {
            id,
            kind: RESULT_BUILD_LOG_LINE,
            fields: vec![Field::Text("\u{1b}[1mx".into())],
        }
    }

    #[test]
    fn lines_find_their_derivation_while_it_is_built() {
        let (mut activities, drv) = (activities(), path("x.drv"));
        let started = BuildEvent::Started { drv: drv.clone(), machine: "ssh://big".into() };
        assert_eq!(activities.event(start(7, &drv)), Some(started));
        let expect = |drv| Some(BuildEvent::LogLine { drv, line: "\u{1b}[1mx".into(), dropped: 0 });
        assert_eq!(activities.event(line(7)), expect(Some(drv)));
        assert_eq!(activities.event(line(8)), expect(None));
        assert_eq!(activities.event(DaemonMessage::Stopped { id: 7 }), None);
        assert_eq!(activities.event(line(7)), expect(None));
    }

    #[test]
    fn a_daemon_that_never_ends_its_activities_does_not_fill_the_memory() {
        let (mut activities, drv) = (activities(), path("x.drv"));
        for id in 0..2 * ACTIVITIES_MAX as u64 {
            activities.event(start(id, &drv));
        }
        assert_eq!(activities.builds.len(), ACTIVITIES_MAX);
    }
}
