//! Places of debugging symbols that uploaders have announced and whose NAR is not published yet. Each counts
//! for its uploader alone. Must never hold more bytes than its bounds, whoever announces.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::BuildId;
use crate::caller::CallerKey;

/// Bytes of all that is announced, and of what one uploader has announced: a package with 20,000 build ids
/// takes some 4 MiB.
const BYTES_MAX: usize = 64 * 1024 * 1024;
const BYTES_OF_ONE_MAX: usize = 16 * 1024 * 1024;
/// Bytes that an entry takes beside its texts.
const ENTRY_BYTES: usize = 128;
/// Time in which the NAR must be published.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// Build ids with their files in a NAR.
pub(super) type Places = Vec<(BuildId, String)>;

/// Announced places.
#[derive(Default)]
pub(super) struct Announced(Mutex<State>);

#[derive(Default)]
struct State {
    bytes: usize,
    uploaders: HashMap<CallerKey, Uploader>,
}

#[derive(Default)]
struct Uploader {
    bytes: usize,
    /// By the name of the uploaded file.
    files: HashMap<String, AnnouncedFile>,
}

struct AnnouncedFile {
    /// The latest of its places.
    announced_at: Instant,
    bytes: usize,
    places: Places,
}

impl Announced {
    /// Notes a place in a file. False where that is too much.
    pub(super) fn add(&self, uploader: CallerKey, file: &str, id: BuildId, member: &str) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_place = ENTRY_BYTES + id.0.len() + member.len();
        let bytes = of_place + ENTRY_BYTES + file.len();
        if !state.has_room(uploader, bytes) {
            state.forget_old(Instant::now());
            if !state.has_room(uploader, bytes) {
                return false;
            }
        }
        let of_one = state.uploaders.entry(uploader).or_default();
        let is_new = !of_one.files.contains_key(file);
        let bytes = if is_new { bytes } else { of_place };
        let announced_at = Instant::now();
        let empty = || AnnouncedFile { announced_at, bytes: 0, places: Vec::new() };
        let of_file = of_one.files.entry(file.to_owned()).or_insert_with(empty);
        of_file.places.push((id, member.to_owned()));
        of_file.announced_at = announced_at;
        of_file.bytes += bytes;
        of_one.bytes += bytes;
        state.bytes += bytes;
        true
    }

    /// Takes the places that this uploader has announced in a file.
    pub(super) fn take(&self, uploader: CallerKey, file: &str) -> Places {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_one) = state.uploaders.get_mut(&uploader) else { return Places::new() };
        let Some(taken) = of_one.files.remove(file) else { return Places::new() };
        of_one.bytes -= taken.bytes;
        if of_one.files.is_empty() {
            state.uploaders.remove(&uploader);
        }
        state.bytes -= taken.bytes;
        taken.places
    }
}

impl State {
    fn has_room(&self, uploader: CallerKey, bytes: usize) -> bool {
        let of_one = self.uploaders.get(&uploader).map_or(0, |uploader| uploader.bytes);
        self.bytes + bytes <= BYTES_MAX && of_one + bytes <= BYTES_OF_ONE_MAX
    }

    fn forget_old(&mut self, now: Instant) {
        for uploader in self.uploaders.values_mut() {
            uploader.files.retain(|_, file| now.duration_since(file.announced_at) < KEPT_FOR);
            uploader.bytes = uploader.files.values().map(|file| file.bytes).sum();
        }
        self.uploaders.retain(|_, uploader| !uploader.files.is_empty());
        self.bytes = self.uploaders.values().map(|uploader| uploader.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uploader_announces_within_its_bytes_and_leaves_room_to_others() {
        let (announced, [greedy, other]) = (Announced::default(), [1, 2].map(CallerKey::Token));
        let id = || BuildId("a".repeat(40));
        let member = "m".repeat(4096);
        let mut count = 0;
        while announced.add(greedy, &format!("{count}.nar"), id(), &member) {
            count += 1;
        }
        assert!((3000..4096).contains(&count), "{count} files of some 4 KiB");
        assert!(announced.add(other, "0.nar", id(), "m"));
        assert_eq!(announced.take(other, "0.nar"), [(id(), "m".to_owned())]);
        assert!(announced.take(other, "1.nar").is_empty(), "what another has announced does not count");
        assert_eq!(announced.take(greedy, "0.nar").len(), 1);
        assert!(announced.add(greedy, "0.nar", id(), &member));
        let mut state = announced.0.lock().expect("nothing panics");
        state.forget_old(Instant::now() + KEPT_FOR);
        assert!(state.bytes == 0 && state.uploaders.is_empty());
    }
}
