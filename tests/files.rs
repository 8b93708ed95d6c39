//! Files of store paths over plain HTTP: listings in Nix's own format, single files whole and in parts, and
//! directories. A path that leads out of the closure, or that no file has, is refused with the reason.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::support::addresses::base_name;
use crate::support::http::raw;
use crate::support::store::Folder;
use crate::support::{Cache, Derivation, Instantiated, text, wait_until};
use serde_json::{Value, json};

/// Time limit of packing.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of the large file: more than what is kept in memory.
const LARGE_BYTES: usize = 300_000;

fn hash(path: &Path) -> &str {
    &base_name(path)[..32]
}

/// A path with files of all kinds, which refers to another one.
fn tree(name: &str) -> Derivation {
    let other =
        Derivation::new(&format!("{name}-lib"), "mkdir -p $out/share; echo of the other > $out/share/text");
    let script = r#"
mkdir -p "$out/bin" "$out/share/doc" "$out/empty"
printf '#!/bin/sh\necho hello\n' > "$out/bin/hello"
chmod +x "$out/bin/hello"
echo '<script>alert(1)</script>' > "$out/share/doc/index.html"
echo 'odd' > "$out/share/a b&<c>%"
: > "$out/nothing"
perl -e 'print pack("N", $_) for 1 .. 75000' > "$out/share/large"
ln -s bin/hello "$out/within"
ln -s "$out/bin" "$out/absolute"
ln -s "$lib/share" "$out/other"
ln -s ../$(basename "$lib")/share/text "$out/sideways"
ln -s /etc/passwd "$out/outside"
ln -s ../../../../etc/passwd "$out/upwards"
ln -s .. "$out/store"
ln -s loop "$out/loop"
ln -s gone "$out/dangling"
"#;
    Derivation::new(name, script).input("lib", &other)
}

#[track_caller]
fn json_of(cache: &Cache, address: &str) -> Value {
    let answer = cache.http.get(address);
    assert_eq!(answer.status, 200, "{address}: {}", answer.text());
    serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("{address}: {error}: {}", answer.text()))
}

/// The listing that Nix writes of a path.
#[track_caller]
fn listing_by_nix(cache: &Cache, path: &Path) -> Value {
    let folder = Folder::new();
    let to = format!("file://{}?write-nar-listing=true", text(folder.path()));
    cache.store.nix(&["copy", "--to", &to, text(path)]);
    let written =
        std::fs::read(folder.path().join(format!("{}.ls", hash(path)))).expect("Nix wrote a listing");
    serde_json::from_slice(&written).expect("JSON")
}

fn built(cache: &Cache, derivation: &Derivation) -> Instantiated {
    let built = cache.store.instantiate(derivation);
    cache.narinfo(built.out());
    built
}

#[test]
fn a_listing_is_the_one_that_nix_writes_in_each_encoding_and_asking_for_it_builds() {
    let cache = Cache::new(&[]);
    let wanted = cache.store.instantiate(&tree("listed"));
    let address = format!("/{}.ls", hash(wanted.out()));
    let missing = cache.http.get(&format!("/cached{address}"));
    assert_eq!((missing.status, missing.text().contains("not built yet")), (404, true), "{}", missing.text());
    assert_eq!(cache.http.head(&address).status, 404, "HEAD builds nothing");
    let plain = cache.http.get(&address);
    assert_eq!((plain.status, plain.header("content-type")), (200, Some("application/json")));
    let listing: Value = serde_json::from_slice(&plain.body).expect("JSON");
    assert_eq!(listing, listing_by_nix(&cache, wanted.out()));
    // A path that is one file has a listing, too.
    let single = built(&cache, &Derivation::new("single", "echo single > $out"));
    let of_single = json_of(&cache, &format!("/{}.ls", hash(single.out())));
    assert_eq!(of_single, listing_by_nix(&cache, single.out()));

    for (encodings, chosen) in [("gzip, zstd", "zstd"), ("br", "br")] {
        let encoded = cache.http.get_with(&address, &[("Accept-Encoding", encodings)]);
        assert_eq!(encoded.header("content-encoding"), Some(chosen));
        let mut decoded = Vec::new();
        if chosen == "zstd" {
            decoded = zstd::decode_all(&encoded.body[..]).expect("zstd");
        } else {
            let mut decoder = brotli_decompressor::Decompressor::new(&encoded.body[..], 4096);
            decoder.read_to_end(&mut decoded).expect("brotli");
        }
        assert_eq!(decoded, plain.body);
        let tag = encoded.header("etag").expect("a tag").to_owned();
        assert_ne!(Some(&*tag), plain.header("etag"));
        let again = cache.http.get_with(&address, &[("Accept-Encoding", encodings), ("If-None-Match", &tag)]);
        assert_eq!((again.status, again.body.len()), (304, 0));
    }
}

#[test]
fn a_file_is_sent_whole_and_in_parts_cold_and_warm() {
    let cache = Cache::new(&[]);
    let wanted = cache.store.instantiate(&tree("files"));
    let large = format!("/file/{}/share/large", hash(wanted.out()));
    let expected: Vec<u8> = (1..=75_000_u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(expected.len(), LARGE_BYTES);
    // Built for it, before it is packed; then from the packed file; then from the copy.
    for state in ["built", "packed", "copied"] {
        let whole = cache.http.get(&large);
        assert_eq!((whole.status, whole.body == expected), (200, true), "{state}: {}", whole.body.len());
        let tag = whole.header("etag").expect("a tag").to_owned();
        for (range, slice) in [
            ("bytes=0-0", 0..1),
            ("bytes=100-199", 100..200),
            ("bytes=-7", LARGE_BYTES - 7..LARGE_BYTES),
            ("bytes=-999999999", 0..LARGE_BYTES),
            ("bytes=299999-", LARGE_BYTES - 1..LARGE_BYTES),
            ("bytes=299990-999999999", LARGE_BYTES - 10..LARGE_BYTES),
        ] {
            let part = cache.http.get_with(&large, &[("Range", range)]);
            assert_eq!((part.status, part.body == expected[slice]), (206, true), "{state} {range}");
            let other = cache.http.get_with(&large, &[("Range", range), ("If-Range", "\"other\"")]);
            assert_eq!((other.status, other.body.len()), (200, LARGE_BYTES), "{range}");
        }
        for range in ["bytes=300000-", "bytes=999999999-"] {
            let none = cache.http.get_with(&large, &[("Range", range)]);
            assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */300000")), "{range}");
        }
        let many: String = (0..1000).map(|n| format!("{n}-{n},")).collect();
        for range in
            [format!("bytes={}", many.trim_end_matches(',')), "bytes=18446744073709551616-".to_owned()]
        {
            let whole = cache.http.get_with(&large, &[("Range", &range)]);
            assert!(matches!(whole.status, 200 | 416), "{}", whole.status);
            assert!(whole.status == 416 || whole.body == expected);
        }
        assert_eq!(cache.http.get_with(&large, &[("If-None-Match", &tag)]).status, 304);
        let head = cache.http.head(&large);
        assert_eq!((head.status, head.header("content-length")), (200, Some("300000")));
        wait_until("it is packed", SOON, || cache.narinfo(wanted.out()).contains("FileSize: "));
    }
    let file = |path: &str| cache.http.get(&format!("/file/{}/{path}", hash(wanted.out())));
    for (path, media_type, body) in [
        ("bin/hello", "text/plain; charset=utf-8", "#!/bin/sh\necho hello\n"),
        ("share/doc/index.html", "text/html; charset=utf-8", "<script>alert(1)</script>\n"),
        ("share/a%20b%26%3Cc%3E%25", "text/plain; charset=utf-8", "odd\n"),
        ("nothing", "text/plain; charset=utf-8", ""),
        ("within", "text/plain; charset=utf-8", "#!/bin/sh\necho hello\n"),
        ("absolute/hello", "text/plain; charset=utf-8", "#!/bin/sh\necho hello\n"),
        ("other/text", "text/plain; charset=utf-8", "of the other\n"),
        ("sideways", "text/plain; charset=utf-8", "of the other\n"),
    ] {
        let answer = file(path);
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{path}");
        assert_eq!(answer.header("content-type"), Some(media_type), "{path}");
        // What a build has made runs nothing in a browser.
        let policy = answer.header("content-security-policy").expect("a policy").to_owned();
        assert!(policy.starts_with("sandbox;") && !policy.contains("script"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!(file("share/large").header("content-type"), Some("application/octet-stream"));
    let single = built(&cache, &Derivation::new("single", "echo single > $out"));
    assert_eq!(cache.http.get(&format!("/file/{}", hash(single.out()))).text(), "single\n");
}

#[test]
fn a_directory_is_a_list_of_its_entries_for_programs_and_a_page_for_browsers() {
    let cache = Cache::new(&[]);
    let built = built(&cache, &tree("directory"));
    let root = format!("/file/{}", hash(built.out()));
    for address in [root.clone(), format!("{root}/")] {
        let listed = json_of(&cache, &address);
        assert_eq!(listed["path"], base_name(built.out()));
        let names: Vec<&str> = listed["entries"]
            .as_array()
            .expect("entries")
            .iter()
            .filter_map(|e| e["name"].as_str())
            .collect();
        assert!(names.is_sorted() && names.contains(&"bin") && names.contains(&"within"), "{names:?}");
    }
    let listed = json_of(&cache, &format!("{root}/bin/"));
    let hello = json!({ "name": "hello", "type": "regular", "size": 21, "executable": true, "target": null });
    assert_eq!(listed["entries"], json!([hello]));
    assert_eq!(json_of(&cache, &format!("{root}/empty"))["entries"], json!([]));

    // The links of the page lead to the files, with and without a slash at the end of its address.
    for (address, base) in
        [(format!("{root}/share"), format!("{root}/")), (format!("{root}/share/"), format!("{root}/share/"))]
    {
        let page = cache.http.get_with(&address, &[("Accept", "text/html,*/*;q=0.8")]);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let html = page.text();
        assert!(!html.contains("&<c>") && html.contains("a b&amp;&lt;c&gt;%"), "{html}");
        let links: Vec<&str> =
            html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(links.len(), 3, "{html}");
        for link in links {
            assert_eq!(cache.http.get(&format!("{base}{link}")).status, 200, "{base}{link}");
        }
    }
}

#[test]
fn the_links_of_a_directory_lead_to_names_of_any_bytes() {
    let cache = Cache::new(&[]);
    let script = r#"
mkdir -p "$out/"$'d\xff%/'
echo bytes > "$out/"$'d\xff%/f\xfe'
echo percent > "$out/"$'d\xff%/f%FE'
echo mark > "$out/"$'d\xff%/f\xef\xbf\xbdfe'
"#;
    let built = built(&cache, &Derivation::new("bytes", script));
    let links = |address: &str| -> Vec<String> {
        let page = cache.http.get_with(address, &[("Accept", "text/html,*/*;q=0.8")]);
        let html = page.text();
        assert_eq!(page.status, 200, "{address}: {html}");
        let links = html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        links.map(str::to_owned).collect()
    };
    for (prefix, slash) in [("", "/"), ("/cached", "/"), ("", "")] {
        let root = format!("{prefix}/file/{}", hash(built.out()));
        let folders = links(&format!("{root}/"));
        assert_eq!(folders, ["d%FF%25/"]);
        let folder = format!("{root}/{}{slash}", folders[0].trim_end_matches('/'));
        let files = links(&folder);
        let base = if slash.is_empty() { format!("{root}/") } else { folder };
        let read = |link: &String| cache.http.get(&format!("{base}{link}")).text();
        assert_eq!(files.iter().map(read).collect::<Vec<_>>(), ["percent\n", "mark\n", "bytes\n"]);
    }
    // Of other addresses all are UTF-8.
    assert_eq!(cache.http.get("/search?q=x").status, 200);
    assert_eq!(cache.http.get("/paths/%ff").status, 404);
}

#[test]
fn nothing_leads_out_of_the_closure_and_each_refusal_says_why() {
    let cache = Cache::new(&[]);
    let built = built(&cache, &tree("refused"));
    let stranger = cache.store.instantiate(&Derivation::new("stranger", "echo secret > $out"));
    cache.narinfo(stranger.out());
    let root = format!("/file/{}", hash(built.out()));
    for (path, status, words) in [
        ("outside", 403, "/etc/passwd"),
        ("upwards", 403, "not in the closure"),
        ("store", 403, "not in the closure"),
        ("loop", 403, "symlinks"),
        ("dangling", 404, "has no gone"),
        ("bin/helo", 404, "did you mean hello?"),
        ("bin/hello/x", 404, "no directory"),
        ("%2e%2e%2fetc", 400, "neither . nor .."),
        ("%2e%2e", 400, "neither . nor .."),
        ("bin/./hello", 400, "neither . nor .."),
        ("%252e%252e%252fetc", 404, "no such file"),
        ("a%00b", 404, "no such file"),
    ] {
        let request = format!("GET {root}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (answer, _) = raw(cache.ondine.address(), request.as_bytes(), SOON);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words),
            "{path}: {answer}"
        );
        assert!(!answer.contains("root:"), "{path}: {answer}");
    }
    let through = format!("{root}/store/{}", base_name(stranger.out()));
    let refused = cache.http.get(&through);
    assert_eq!((refused.status, refused.text().contains("secret")), (403, false), "{}", refused.text());
    // Programs are told the same as JSON.
    let refused = cache.http.get_with(&format!("{root}/outside"), &[("Accept", "application/json")]);
    let refused: Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(refused["reason"], "refused");
}

#[test]
fn an_address_of_no_form_is_a_client_error_and_never_one_of_the_server() {
    let cache = Cache::new(&[]);
    let good = "0123456789abcdfghijklmnpqrsvwxyz";
    let hashes = [
        "0".repeat(31),
        "0".repeat(33),
        good.to_uppercase(),
        format!("{}e", &good[1..]),
        format!("{}%00", &good[1..]),
        "%2e%2e%2fetc%2fpasswd".to_owned(),
        "%252e%252e%252f".to_owned(),
        "a".repeat(64 * 1024 - 200),
        "%ff".to_owned(),
    ];
    for hash in hashes {
        for address in [format!("/{hash}.ls"), format!("/file/{hash}"), format!("/file/{hash}/bin/x")] {
            let request = format!("GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let (answer, _) = raw(cache.ondine.address(), request.as_bytes(), SOON);
            let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
            assert!(line.starts_with("HTTP/1.1 4"), "{line:?} for {:.80}", address);
        }
    }
    let unknown = cache.http.get(&format!("/file/{good}/bin/x"));
    assert_eq!((unknown.status, unknown.text().starts_with("unknown: ")), (404, true), "{}", unknown.text());
}
