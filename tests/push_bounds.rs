//! Bounds of uploads: whoever opens many, never ends one, or sends a little that becomes very much, is
//! refused with the reason, keeps nobody else from uploading, and leaves nothing.

use std::time::Duration;

use crate::support;
use crate::support::http::raw;
use crate::support::uploads::{HASH, OpenUpload, Uploads, nar, parsed};
use crate::support::upstream::bombs::{xz_with_a_dictionary_of_4_gib, zstd_with_a_window_of_2_gib};
use crate::support::{Client, Derivation, Release, text, wait_until};

/// Time limit of every answer.
const SOON: Duration = Duration::from_secs(120);
/// Memory that refusing something may take, in bytes.
const MEMORY_MAX: u64 = 64 << 20;

/// The header of a token with these rights.
fn bearer(uploads: &Uploads, name: &str, rights: &str) -> String {
    format!("Authorization: Bearer {}\r\n", uploads.cache.ondine.new_token(name, rights, &[]))
}

#[test]
fn a_thousand_half_open_uploads_keep_nobody_from_uploading_and_leave_nothing() {
    const HALF_OPEN: usize = 1_000;
    /// Uploads of one client that the server has open.
    const OPEN_OF_ONE_MAX: usize = 128;
    let uploads = Uploads::new(&[]);
    let (greedy, other) = (bearer(&uploads, "greedy", "push"), bearer(&uploads, "other", "push,vouch"));
    let address = uploads.cache.ondine.address().to_owned();
    let before = uploads.cache.ondine.rss_bytes();
    let half = nar(b"half of it never comes");
    let mut open: Vec<OpenUpload> = (0..HALF_OPEN)
        .map(|_| {
            let headers = format!("Content-Length: 100000\r\n{greedy}");
            let mut upload = OpenUpload::begin(&address, &format!("/nar/{}.nar", "0".repeat(52)), &headers);
            upload.send(&half[..half.len() / 2]);
            upload
        })
        .collect();
    // Those beyond the bound are refused at once, whichever they are.
    let refused = open.iter_mut().filter_map(|upload| {
        let answer = upload.read(Duration::from_millis(20));
        (!answer.is_empty()).then(|| parsed(&answer))
    });
    let refused: Vec<(u16, String)> = refused.collect();
    let few: Vec<_> = refused.iter().filter(|(status, _)| *status != 503).collect();
    assert!(few.is_empty(), "{few:?}");
    assert!(refused.iter().all(|(_, text)| text.contains("too much is being uploaded at once")));
    assert!(refused.len() >= HALF_OPEN - 2 * OPEN_OF_ONE_MAX, "only {} are refused", refused.len());

    let whole = nar(b"whole");
    let name = uploads.upload(&whole);
    for (path, body) in [
        (format!("/nar/{name}.nar"), whole.clone()),
        (
            format!("/{HASH}.narinfo"),
            uploads.narinfo(&format!("{HASH}-whole"), &name, &name, &whole, "").into(),
        ),
    ] {
        let mut upload =
            OpenUpload::begin(&address, &path, &format!("Content-Length: {}\r\n{other}", body.len()));
        assert!(upload.send(&body));
        assert_eq!(upload.answer().0, 200, "{path}");
    }
    let peak = uploads.cache.ondine.peak_rss_bytes();
    assert!(peak < before + 2 * MEMORY_MAX, "{before} bytes before, {peak} at most");
    drop(open);
    wait_until("nothing is left of them", SOON, || uploads.nar_files() == 1);
    assert_eq!(uploads.served(), 1);
    assert_eq!(uploads.cache.http.get(&format!("/{HASH}.narinfo")).status, 200);
}

#[test]
fn clients_that_hold_all_uploads_that_they_may_keep_nobody_from_uploading() {
    let uploads = Uploads::new(&[]);
    let address = uploads.cache.ondine.address().to_owned();
    let path = format!("/nar/{}.nar", "0".repeat(52));
    let mut held = Vec::new();
    for name in ["one", "two", "three"] {
        let headers = format!("Content-Length: 100000\r\n{}", bearer(&uploads, name, "push"));
        for number in 0..64 {
            let mut upload = OpenUpload::begin(&address, &path, &headers);
            // The others send nothing at all.
            assert!(number % 2 == 0 || upload.send(b"\r"));
            held.push(upload);
        }
    }
    uploads.upload(&nar(b"of somebody else"));
    let answers = held.iter_mut().map(|upload| upload.read(Duration::from_millis(1)));
    assert!(answers.filter(Vec::is_empty).count() > 64, "they are open still");
    drop(held);
    wait_until("nothing is left of them", SOON, || uploads.nar_files() == 1);
}

#[test]
fn an_endless_body_without_a_length_ends_at_the_bound_with_the_reason() {
    const NAR_BYTES_MAX: u64 = 8 << 20;
    let uploads = Uploads::new(&["--max-upstream-nar-bytes", "8MiB"]);
    let before = uploads.cache.ondine.rss_bytes();
    // The NAR of a file with 2^40 bytes.
    let mut start = nar(b"12345678");
    // Behind it: the length, the contents, and a parenthesis with its length.
    start.truncate(start.len() - 32);
    let start = [&start[..], &(1_u64 << 40).to_le_bytes()].concat();
    for path in [format!("/nar/{}.nar", "0".repeat(52)), format!("/{HASH}.narinfo"), format!("/{HASH}.ls")] {
        let mut upload = OpenUpload::begin(uploads.address(), &path, "Transfer-Encoding: chunked\r\n");
        let mut sent = 0_u64;
        let piece = vec![b'x'; 256 * 1024];
        upload.send_chunk(&start);
        // A door of the test passes some on before it hears of the end.
        while sent < 40 * NAR_BYTES_MAX && upload.send_chunk(&piece) {
            sent += piece.len() as u64;
        }
        assert!(sent < 40 * NAR_BYTES_MAX, "{path}: {sent} bytes were taken");
        let (answer, text) = upload.answer();
        assert!([400, 413].contains(&answer) && text.contains("bytes"), "{path}: {text}");
    }
    // A length that is too large is refused before anything of it is sent.
    let path = format!("/nar/{}.nar", "0".repeat(52));
    let mut upload =
        OpenUpload::begin(uploads.address(), &path, "Content-Length: 2147483648\r\nExpect: 100-continue\r\n");
    assert_eq!(upload.answer().0, 413);
    let peak = uploads.cache.ondine.peak_rss_bytes();
    assert!(peak < before + MEMORY_MAX + NAR_BYTES_MAX, "{before} bytes before, {peak} at most");
    wait_until("nothing is left", SOON, || uploads.nar_files() == 0);
    assert_eq!(uploads.served(), 0);
}

#[test]
fn a_bomb_in_each_compression_goes_off_nowhere() {
    let uploads = Uploads::new(&["--max-upstream-nar-bytes", "4MiB"]);
    // A client of the newest release has every compression; what it makes of zeros is small.
    let release = Release::all().pop().expect("there is one");
    let pusher = Client::with_settings(release, &uploads.cache.store.store_dir(), &[("max-jobs", "1")]);
    let zeros = pusher.build(&Derivation::new("zeros", "head -c 134217728 /dev/zero > $out"));
    let before = uploads.cache.ondine.rss_bytes();
    for compression in ["xz", "zstd", "bzip2", "gzip", "br", "lzma", "lz4", "none"] {
        let url = format!("{}/cached?compression={compression}", uploads.door.url());
        let pushed = pusher.run("nix", &["copy", "--to", &url, text(&zeros[0])]).must_fail();
        assert!(pushed.stderr.contains("413"), "{compression}: {pushed}");
    }
    let peak = uploads.cache.ondine.peak_rss_bytes();
    assert!(peak < before + MEMORY_MAX, "{before} bytes before, {peak} at most");
    wait_until("nothing is left", SOON, || uploads.nar_files() == 0);
    assert_eq!(uploads.served(), 0);
}

#[test]
fn a_file_that_asks_for_gigabytes_of_memory_is_refused() {
    let uploads = Uploads::new(&[]);
    let before = uploads.cache.ondine.rss_bytes();
    let contents = nar(&b"any bytes at all".repeat(20_000));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("nar");
    std::fs::write(&file, &contents).expect("written");
    let mut xz = std::process::Command::new("xz");
    xz.args(["--stdout", text(&file)]);
    let xz = support::process::run(xz).must_succeed().stdout;
    for (ending, body) in
        [("xz", xz_with_a_dictionary_of_4_gib(&xz)), ("zst", zstd_with_a_window_of_2_gib(&contents))]
    {
        let (status, text) = uploads.put(&format!("/nar/{}.nar.{ending}", "0".repeat(52)), &body);
        let asks = text.contains("memory") || text.contains("window");
        assert!(status == 400 && asks, "{ending}: {text}");
    }
    let peak = uploads.cache.ondine.peak_rss_bytes();
    assert!(peak < before + MEMORY_MAX, "{before} bytes before, {peak} at most");
    wait_until("nothing is left", SOON, || uploads.nar_files() == 0);
}

#[test]
fn a_small_file_that_becomes_very_large_by_its_content_encoding_is_refused() {
    let uploads = Uploads::new(&[]);
    let before = uploads.cache.ondine.rss_bytes();
    let zeros = support::upstream::bombs::zstd_bomb();
    // A listing is not kept, so nothing decodes it.
    for (path, expected) in
        [(format!("/{HASH}.narinfo"), 413), (format!("/{HASH}.ls"), 200), (format!("/log/{HASH}-p.drv"), 413)]
    {
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: zstd\r\nContent-Length: {}\r\n\r\n",
            zeros.len()
        );
        let (answer, _) = raw(uploads.address(), &[head.as_bytes(), &zeros].concat(), SOON);
        let (status, text) = parsed(&answer);
        assert_eq!(status, expected, "{path}: {text}");
    }
    let peak = uploads.cache.ondine.peak_rss_bytes();
    assert!(peak < before + 2 * MEMORY_MAX, "{before} bytes before, {peak} at most");
}

#[test]
fn many_bodies_of_one_client_at_once_take_no_more_memory_than_one_client_may() {
    const CLIENTS: usize = 32;
    const BODY: usize = 24 << 20;
    let uploads = Uploads::new(&[]);
    let before = uploads.cache.ondine.rss_bytes();
    let token = uploads.cache.ondine.new_token("ci", "push", &[]);
    let address = uploads.cache.ondine.address();
    let log = vec![b'x'; BODY];
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (token, log) = (&token, &log);
            scope.spawn(move || {
                let headers = format!("Authorization: Bearer {token}\r\nContent-Length: {BODY}\r\n");
                let path = format!("/log/{number:032}-p.drv");
                let mut upload = support::uploads::OpenUpload::begin(address, &path, &headers);
                upload.send(log);
                let (status, text) = upload.answer();
                assert_eq!(status, 200, "{text}");
            });
        }
    });
    let peak = uploads.cache.ondine.peak_rss_bytes();
    // 128 MiB of bodies, and what collecting and storing them takes.
    assert!(peak < before + 3 * MEMORY_MAX, "{before} bytes before, {peak} at most");
}
