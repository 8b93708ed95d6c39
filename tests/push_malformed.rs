//! Uploads that are not what they should be, in every part of the request: each is refused with the reason
//! and no other status than those of a wrong request, and nothing of it is stored.

use std::time::Duration;

use crate::support::http::raw;
use crate::support::malformed::malformed;
use crate::support::uploads::{HASH, Uploads, nar, parsed};
use crate::support::{Http, wait_until};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_nar_that_no_client_could_unpack_is_refused_in_every_form() {
    let uploads = Uploads::new(&[]);
    let name = "0".repeat(52);
    for (said, nar) in malformed() {
        let packed = zstd::encode_all(&nar[..], 1).expect("memory takes everything");
        for (ending, body) in [("nar", &nar), ("nar.zst", &packed)] {
            let (status, text) = uploads.put(&format!("/nar/{name}.{ending}"), body);
            assert!(status == 400 && !text.contains("which is"), "{said}, {ending}: {text}");
        }
    }
    // Its name alone is wrong of this one.
    let (status, text) = uploads.put(&format!("/nar/{name}.nar"), &nar(b"good"));
    assert!(status == 400 && text.contains("which is"), "{text}");
    assert_eq!(uploads.served(), 0);
    wait_until("nothing is left", SOON, || uploads.nar_files() == 0);
}

#[test]
fn a_narinfo_that_no_client_would_write_is_refused_by_what_is_wrong_with_it() {
    let uploads = Uploads::new(&[]);
    let contents = nar(b"one");
    let name = uploads.upload(&contents);
    let good = uploads.narinfo(&format!("{HASH}-one"), &name, &name, &contents, "");
    let size = format!("NarSize: {}", contents.len());
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let url = format!("URL: nar/{name}.nar");
    let wrong: Vec<(&str, String)> = vec![
        ("no narinfo", "<html></html>".to_owned()),
        ("nothing", String::new()),
        ("a line without a colon", format!("{good}what\n")),
        ("no size", replaced(&size, "Other: 1")),
        ("a size of nothing", replaced(&size, "NarSize: 0")),
        ("a negative size", replaced(&size, "NarSize: -1")),
        ("a size beyond all", replaced(&size, "NarSize: 18446744073709551616")),
        ("two sizes", format!("{good}{size}\n")),
        ("two paths", good.clone() + &good),
        ("a NUL", replaced("-one\n", "-o\0ne\n")),
        ("another store", replaced("StorePath: /", "StorePath: /elsewhere/")),
        ("a path in a path", replaced("-one\n", "-one/bin\n")),
        ("a folder above", replaced(&url, "URL: ../../nar/x.nar")),
        ("another host", replaced(&url, "URL: //example.org/x.nar")),
        ("an address", replaced(&url, "URL: http://127.0.0.1:1/x.nar")),
        ("a file", replaced(&url, "URL: file:///etc/passwd")),
        ("an unknown compression", replaced("Compression: none", "Compression: rot13")),
        ("a wrong signature", format!("{good}Sig: nobody\n")),
        ("a reference that is none", replaced("References: ", "References: ../x ")),
        ("a wrong content address", format!("{good}CA: fixed:r:sha256:{name}\n")),
    ];
    for (said, narinfo) in wrong {
        let (status, text) = uploads.put(&format!("/{HASH}.narinfo"), narinfo.as_bytes());
        assert_eq!(status, 400, "{said}: {text}");
        assert_eq!(uploads.served(), 0, "{said}");
    }
    let large = format!("{good}Extra: {}\n", "x".repeat(3 << 20));
    let (status, text) = uploads.put(&format!("/{HASH}.narinfo"), large.as_bytes());
    assert!(status == 413 && text.contains("bytes"), "{text}");
    assert_eq!(uploads.put(&format!("/{HASH}.narinfo"), good.as_bytes()).0, 200);
    assert_eq!(uploads.served(), 1);
}

#[test]
fn an_address_that_names_nothing_takes_nothing() {
    let uploads = Uploads::new(&[]);
    let body = nar(b"one");
    let name = "0".repeat(52);
    for path in [
        format!("/{}.narinfo", &HASH[1..]),
        format!("/{HASH}0.narinfo"),
        format!("/{}.narinfo", HASH.to_uppercase()),
        format!("/{}e.narinfo", &HASH[1..]),
        format!("/{}%2e%2e%2f.narinfo", &HASH[9..]),
        format!("/{HASH}%00.narinfo"),
        format!("/%252e%252e/{HASH}.narinfo"),
        format!("/..%2f{HASH}.narinfo"),
        format!("/nar/{}.nar", &name[1..]),
        format!("/nar/{name}0.nar"),
        format!("/nar/{name}.nar.exe"),
        format!("/nar/..%2f{name}.nar"),
        format!("/nar/{name}%00.nar"),
        format!("/log/{HASH}-p"),
        "/log/..%2f..%2fx.drv".to_owned(),
        "/debuginfo/xyz".to_owned(),
        "/realisations/sha256:xyz!out.doi".to_owned(),
        format!("/{}", "a".repeat(64 * 1024)),
    ] {
        let (status, text) = uploads.put(&path, &body);
        let shown = &path[..path.len().min(80)];
        assert!((400..500).contains(&status), "{shown}: {text}");
    }
    assert_eq!((uploads.served(), uploads.nar_files()), (0, 0));
}

#[test]
fn a_request_of_any_method_with_two_lengths_is_the_last_of_its_connection_and_two_hosts_are_refused() {
    let uploads = Uploads::new(&[]);
    for (verb, path) in [
        ("GET", "/nix-cache-info"),
        ("GET", "/0123456789abcdfghijklmnpqrsvwxyz.narinfo"),
        ("POST", "/api/v1/builds"),
        ("DELETE", "/api/v1/builds/1"),
    ] {
        let next = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        for (lengths, headers) in [
            (true, "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
            (true, "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
            (false, "Host: y\r\nContent-Length: 5\r\n"),
        ] {
            let request = format!("{verb} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n0\r\n\r\n{next}");
            let (answer, closed) = raw(uploads.cache.ondine.address(), request.as_bytes(), SOON);
            let (status, text) = parsed(&answer);
            assert!(closed && text.matches("HTTP/1.1 ").count() == 1, "{verb} {path}: {text}");
            assert!(
                lengths || status == 400 && text.contains("more than one header Host"),
                "{verb} {path}: {text}"
            );
        }
    }
}

#[test]
fn a_request_that_two_readers_read_in_two_ways_is_refused() {
    let uploads = Uploads::new(&[]);
    let body = nar(b"one");
    let (length, path) = (body.len(), format!("/nar/{}.nar", "0".repeat(52)));
    for (said, headers) in [
        ("two lengths", format!("Content-Length: {length}\r\nContent-Length: 5\r\n")),
        ("a length and chunks", format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n")),
        ("two hosts", format!("Content-Length: {length}\r\nHost: y\r\n")),
        ("a folded header", format!("Content-Length: {length}\r\nX-A: 1\r\n 2\r\n")),
        ("a space before the colon", format!("Content-Length : {length}\r\n")),
        ("no number", "Content-Length: 0x10\r\n".to_owned()),
        ("a negative length", "Content-Length: -1\r\n".to_owned()),
        ("an unknown coding", "Transfer-Encoding: gzip\r\n".to_owned()),
    ] {
        let request = format!("PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let (answer, closed) =
            raw(uploads.cache.ondine.address(), &[request.as_bytes(), &body].concat(), SOON);
        let (status, text) = parsed(&answer);
        assert!([400, 401].contains(&status) && closed, "{said}: {text}");
        let (status, text) = uploads.send(&path, &headers, &body);
        assert_eq!(status, 400, "{said}: {text}");
    }
    assert_eq!((uploads.served(), uploads.nar_files()), (0, 0));
}

#[test]
fn an_upload_to_a_full_disk_is_refused_with_the_reason_and_taken_when_there_is_room() {
    let uploads = Uploads::on_disks(&["--min-free-bytes", "0"], &[("", "size=64m")]);
    // Less than a NAR may have on so small a disk.
    let contents = nar(&noise(700 << 10));
    uploads.cache.ondine.disks()[0].fill();
    let path = format!("/nar/{}.nar", "0".repeat(52));
    let (status, text) = uploads.put(&path, &contents);
    assert!(status == 503 && text.contains("too little room"), "{text}");
    let drafts = uploads.cache.ondine.state_dir().join("nar/tmp");
    assert_eq!(std::fs::read_dir(&drafts).expect("the folder of drafts").count(), 0);
    assert_eq!(Http::new(&uploads.cache.ondine.url()).get("/nix-cache-info").status, 200);
    uploads.cache.ondine.disks()[0].empty();
    // Refused for its name then, and no more for want of room.
    wait_until("there is room for a NAR", SOON, || uploads.put(&path, &contents).0 == 400);
    let name = uploads.upload(&contents);
    let narinfo = uploads.narinfo(&format!("{HASH}-one"), &name, &name, &contents, "");
    let published = || uploads.put(&format!("/{HASH}.narinfo"), narinfo.as_bytes()).0 == 200;
    wait_until("there is room for a row", SOON, published);
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 20260102_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

#[test]
fn a_nar_that_holds_the_signing_key_is_refused_wherever_it_stands_in_it() {
    let uploads = Uploads::new(&[]);
    let key = std::fs::read_to_string(uploads.cache.ondine.state_dir().join("signing-key")).expect("a key");
    let secret = key.split(':').nth(1).expect("its secret part");
    let large = [vec![b'x'; 3_000_000], key.clone().into_bytes(), vec![b'y'; 3_000_000]].concat();
    for contents in [key.as_bytes(), format!("key={secret}\n").as_bytes(), &large] {
        let nar = nar(contents);
        let packed = zstd::encode_all(&nar[..], 1).expect("memory takes everything");
        for (ending, body) in [("nar", &nar), ("nar.zst", &packed)] {
            let (status, text) = uploads.put(&format!("/nar/{}.{ending}", "0".repeat(52)), body);
            assert!(status == 400 && text.contains("signing key"), "{ending}: {text}");
            assert!(!text.contains(secret), "{ending}");
        }
    }
    wait_until("nothing is left", SOON, || uploads.nar_files() == 0);
    // The public one may be anywhere.
    uploads.upload(&nar(uploads.cache.ondine.public_key().as_bytes()));
}

#[test]
fn a_false_signature_under_the_name_of_a_key_of_the_server_is_not_kept() {
    let uploads = Uploads::new(&[]);
    let contents = nar(b"signed");
    let name = uploads.upload(&contents);
    let key = uploads.cache.ondine.public_key().to_owned();
    let key_name = key.split(':').next().expect("a name");
    let junk = format!("{}==", "A".repeat(86));
    let mut info = uploads.narinfo(&format!("{HASH}-signed"), &name, &name, &contents, "");
    info += &format!("Sig: {key_name}:{junk}\nSig: other-1:{junk}\n");
    assert_eq!(uploads.put(&format!("/{HASH}.narinfo"), info.as_bytes()).0, 200);
    let served = uploads.cache.http.get(&format!("/{HASH}.narinfo")).text();
    let under_ours = format!("Sig: {key_name}:");
    let ours: Vec<&str> = served.lines().filter(|line| line.starts_with(&under_ours)).collect();
    assert!(ours.len() == 1 && !ours[0].contains(&junk), "{served}");
    assert!(served.contains("Sig: other-1:"), "{served}");
}
