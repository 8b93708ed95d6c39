//! The frames that a daemon sends while it works: messages, activities, their results, and in the end success
//! or an error. We never exchange data in between, so frames that ask for it break the protocol.

use super::error::DaemonError;
use super::wire::{RequestBytes, Wire};

const NEXT: u64 = 0x6f6c_6d67;
const READ: u64 = 0x6461_7461;
const WRITE: u64 = 0x6461_7416;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;
/// The only kind of error that there is.
const ERROR_KIND: &str = "Error";
/// Level of messages that are shown unless the user wants to see none.
const LEVEL_ERROR: u64 = 0;
/// Level of activities that are shown by default.
const LEVEL_INFO: u64 = 3;

/// Fields of an activity or a result at most; Nix sends up to four.
const FIELDS_MAX: u64 = 1_000;
/// Traces of an error at most.
const TRACES_MAX: u64 = 100_000;

/// A value that belongs to an activity or a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Number(u64),
    Text(String),
    /// A text too long to be kept: its beginning, and how many bytes were dropped.
    Cut(String, u64),
}

impl Field {
    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Cut(text, _) => Some(text),
            Self::Number(_) => None,
        }
    }

    /// The bytes of a text that were dropped.
    pub(super) fn dropped(&self) -> u64 {
        if let Self::Cut(_, dropped) = self { *dropped } else { 0 }
    }
}

/// Something that the daemon tells while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DaemonMessage {
    Message(String),
    Started { id: u64, kind: u64, fields: Vec<Field> },
    Stopped { id: u64 },
    Result { id: u64, kind: u64, fields: Vec<Field> },
}

/// Reads frames up to the daemon's last.
///
/// # Errors
/// [`DaemonError::Nix`] if it ends with an error of its own, which leaves the connection usable.
pub(super) async fn until_last(
    wire: &mut Wire,
    mut on_news: impl FnMut(DaemonMessage),
) -> Result<(), DaemonError> {
    loop {
        let news = match wire.number().await? {
            LAST => return Ok(()),
            ERROR => return Err(DaemonError::Nix(error(wire).await?)),
            NEXT => DaemonMessage::Message(wire.message("a message").await?),
            START_ACTIVITY => started(wire).await?,
            STOP_ACTIVITY => DaemonMessage::Stopped { id: wire.number().await? },
            RESULT => DaemonMessage::Result {
                id: wire.number().await?,
                kind: wire.number().await?,
                fields: fields(wire).await?,
            },
            READ => return Err(DaemonError::Protocol("it asks for data where there is none".into())),
            WRITE => return Err(DaemonError::Protocol("it sends data where none is expected".into())),
            other => return Err(DaemonError::Protocol(format!("{other:#x} is no kind of frame"))),
        };
        on_news(news);
    }
}

async fn started(wire: &mut Wire) -> Result<DaemonMessage, DaemonError> {
    let id = wire.number().await?;
    let _level = wire.number().await?;
    let kind = wire.number().await?;
    let _text = wire.message("the text of an activity").await?;
    let fields = fields(wire).await?;
    let _parent = wire.number().await?;
    Ok(DaemonMessage::Started { id, kind, fields })
}

async fn fields(wire: &mut Wire) -> Result<Vec<Field>, DaemonError> {
    let mut fields = Vec::new();
    for _ in 0..wire.count("a list of fields", FIELDS_MAX).await? {
        fields.push(match wire.number().await? {
            0 => Field::Number(wire.number().await?),
            1 => match wire.builders_words("a field").await? {
                (text, 0) => Field::Text(text),
                (text, dropped) => Field::Cut(text, dropped),
            },
            other => return Err(DaemonError::Protocol(format!("{other} is no kind of field"))),
        });
    }
    Ok(fields)
}

/// Frames that this program sends to a client.
impl RequestBytes {
    /// The end of an operation that went well. Its reply follows.
    pub(super) fn last(self) -> Self {
        self.number(LAST)
    }

    /// The end of an operation that did not.
    pub(super) fn error(self, text: &str) -> Self {
        let error = self.number(ERROR).text(ERROR_KIND).number(LEVEL_ERROR).text(ERROR_KIND).text(text);
        // Neither a position nor traces.
        error.number(0).number(0)
    }

    /// Lines for the user.
    pub(super) fn message(self, text: &str) -> Self {
        self.number(NEXT).text(&format!("{text}\n"))
    }

    pub(super) fn started(self, id: u64, kind: u64, text: &str, fields: &[Field]) -> Self {
        let started = self.number(START_ACTIVITY).number(id).number(LEVEL_INFO).number(kind).text(text);
        started.fields(fields).number(0) // no activity around it
    }

    pub(super) fn stopped(self, id: u64) -> Self {
        self.number(STOP_ACTIVITY).number(id)
    }

    pub(super) fn result(self, id: u64, kind: u64, fields: &[Field]) -> Self {
        self.number(RESULT).number(id).number(kind).fields(fields)
    }

    fn fields(self, fields: &[Field]) -> Self {
        fields.iter().fold(self.number(fields.len() as u64), |frame, field| match field {
            Field::Number(number) => frame.number(0).number(*number),
            Field::Text(text) | Field::Cut(text, _) => frame.number(1).text(text),
        })
    }
}

/// The message and its traces, one after the other, as Nix wrote them.
async fn error(wire: &mut Wire) -> Result<String, DaemonError> {
    let kind = wire.text("the kind of an error").await?;
    if kind != ERROR_KIND {
        return Err(DaemonError::Protocol(format!("{kind:?} is no kind of error")));
    }
    let _level = wire.number().await?;
    let _name = wire.text("the name of an error").await?;
    let mut text = wire.message("an error").await?;
    no_position(wire).await?;
    for _ in 0..wire.count("a list of traces", TRACES_MAX).await? {
        no_position(wire).await?;
        text.push('\n');
        text.push_str(&wire.message("a trace").await?);
    }
    Ok(text)
}

/// Positions in source files are never sent: their place is always a zero.
async fn no_position(wire: &mut Wire) -> Result<(), DaemonError> {
    match wire.number().await? {
        0 => Ok(()),
        other => Err(DaemonError::Protocol(format!("an error has a position ({other})"))),
    }
}
