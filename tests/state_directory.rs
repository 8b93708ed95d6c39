//! The state directory is the server's alone: who else could write or lock there is kept out, and what does
//! not belong there stands in nobody's way.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::derivations::text_file;
use crate::support::{Cache, process, text};

fn mode_of(path: &Path) -> u32 {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.permissions().mode() & 0o7777
}

#[test]
fn a_state_directory_that_others_may_enter_is_closed_and_one_that_everyone_may_write_to_is_refused() {
    let mut cache = Cache::new(&[]);
    let state_dir = cache.ondine.state_dir();
    assert_eq!((mode_of(&state_dir), mode_of(&state_dir.join("lock"))), (0o700, 0o600));
    assert!(cache.ondine.sigterm().success());
    for name in ["", "lock"] {
        fs::set_permissions(state_dir.join(name), Permissions::from_mode(0o755)).expect("set");
    }
    cache.ondine.start_again();
    assert_eq!((mode_of(&state_dir), mode_of(&state_dir.join("lock"))), (0o700, 0o600));
    // What is made anew is private by itself.
    assert_eq!(mode_of(&state_dir.join("ledger/added")), 0o600);
    assert!(cache.ondine.sigterm().success());
    fs::set_permissions(&state_dir, Permissions::from_mode(0o777)).expect("set");
    let mut server = cache.ondine.command("serve");
    server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&state_dir)]);
    let refused = process::run(server).must_fail();
    assert!(refused.stderr.contains("mode 777") && refused.stderr.contains("chmod 700"), "{refused}");
}

#[test]
fn everything_in_it_is_documented() {
    let cache = Cache::new(&[]);
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).expect("a page");
    let (_, table) = page.split_once("## The state directory").expect("a section");
    let table = table.split("\n## ").next().expect("its text");
    let entries = fs::read_dir(cache.ondine.state_dir()).expect("the state directory");
    let names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().display().to_string()).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        let name = name.trim_end_matches("-wal").trim_end_matches("-shm");
        let is_named = [format!("`{name}`"), format!("`{name}/`")].iter().any(|name| table.contains(name));
        assert!(is_named, "docs/operations.md does not say what {name} is");
    }
}

#[test]
fn what_does_not_belong_among_the_files_that_are_being_written_is_swept() {
    let mut cache = Cache::new(&[]);
    let nar = cache.ondine.state_dir().join("nar");
    assert!(cache.ondine.sigterm().success());
    fs::create_dir_all(nar.join("tmp/a-folder/below")).expect("made");
    fs::write(nar.join("tmp/a-folder/below/file"), "x").expect("written");
    fs::write(nar.join("tmp/a-file"), "x").expect("written");
    fs::remove_dir_all(nar.join("plain")).expect("removed");
    fs::write(nar.join("plain"), "not a folder").expect("written");
    cache.ondine.start_again();
    assert_eq!(fs::read_dir(nar.join("tmp")).expect("a folder").count(), 0);
    let path = cache.store.instantiate(&text_file("after", "after"));
    cache.narinfo(path.out());
}
