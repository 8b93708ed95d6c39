//! Doors for those without Nix, from outside: listings by real clients, the script in otherwise empty roots
//! by each of its means, and hostile names, logs and headers, which stay text in every answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::downloads::{Scene, greeter, hash, shell};
use crate::support::addresses::base_name;
use crate::support::http::raw;
use crate::support::package_set::told;
use crate::support::process::{Finished, run};
use crate::support::store::Folder;
use crate::support::{Client, Derivation, Release, derivations, text};

/// Time limit of an answer.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn each_nix_lists_the_files_of_a_path_and_shows_one_without_fetching_the_path() {
    let scene = Scene::new([], "");
    assert_eq!(scene.http.get("/get/pkgs/greet").status, 302);
    let path = scene.out();
    let program = path.join("bin/greet");
    for release in Release::all() {
        let client = Client::new(release, &scene.store.store_dir());
        let nix = |words: &[&str]| {
            let url = scene.ondine.url();
            client.run("nix", &[&["store"], words, &["--store", &url]].concat()).must_succeed().text()
        };
        let listed = nix(&["ls", "--recursive", text(&path)]);
        assert!(listed.lines().any(|line| line == "./bin/greet"), "{listed}");
        let shown = nix(&["cat", text(&program)]);
        assert!(shown.starts_with("#!/bin/sh") && !client.has(&path), "{shown}");
    }
}

/// A root that has these programs of this machine, with their libraries, and nothing else.
fn root_with(folder: &Folder, name: &str, programs: &[&str]) -> PathBuf {
    let root = folder.subfolder(name);
    let common = "sh mkdir mktemp tar curl mv rm cut head id cat umount true chroot";
    shell(&format!(
        "cd {root}; mkdir -p bin proc dev tmp old
         for program in {common} {more}; do
             path=$(readlink -f $(type -P $program)); cp -L $path bin/$program
             for library in $(ldd $path 2>/dev/null | grep -o '/[^ ]*'); do
                 mkdir -p .$(dirname $library); cp -L -n $library .$library
             done
         done",
        root = text(&root),
        more = programs.join(" ")
    ));
    root
}

/// Runs a script with these arguments where this folder is the root.
fn run_in(root: &Path, script: &str, arguments: &str) -> Finished {
    std::fs::write(root.join("script"), script).expect("written");
    let enter = format!(
        "set -e; mount --bind {root} {root}; cd {root}; mount -t proc proc proc; mount --rbind /dev dev
         pivot_root . old; umount -l /old
         exec env -i PATH=/bin ONDINE_RUN_DIR=/cache /bin/sh -s -- {arguments} < /script",
        root = text(root)
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--propagation", "private", "sh", "-c", &enter]);
    run(command)
}

#[test]
fn the_script_runs_its_program_by_each_means_in_an_otherwise_empty_root() {
    let scene = Scene::new([], "");
    let script = scene.http.get("/run/pkgs/greet").text();
    let folder = Folder::new();
    for (means, programs) in [
        ("namespaces", &["unshare", "mount", "cp", "rmdir", "pivot_root", "env"][..]),
        ("bubblewrap", &["bwrap", "readlink", "env"]),
        ("proot", &["proot", "env"]),
    ] {
        let root = root_with(&folder, means, programs);
        for _ in ["cold", "warm"] {
            let ran = run_in(&root, &script, "'with arguments' twice");
            assert!(ran.succeeded(), "{means}: {}", ran.stderr);
            assert_eq!(ran.text().trim(), "hello from the closure with arguments twice", "{means}");
        }
    }
    let refused = run_in(&root_with(&folder, "nothing", &["env"]), &script, "x").must_fail().stderr;
    assert!(
        refused.contains("install bubblewrap or proot") && refused.contains("user namespaces"),
        "{refused}"
    );
    let without_curl = folder.subfolder("without");
    shell(&format!(
        "cp -r {}/. {}; rm {}/bin/curl",
        text(&folder.path().join("nothing")),
        text(&without_curl),
        text(&without_curl)
    ));
    std::fs::remove_dir_all(without_curl.join("cache")).expect("it was fetched");
    let refused = run_in(&without_curl, &script, "x").must_fail().stderr;
    assert!(refused.contains("install curl or wget"), "{refused}");
}

/// A name with what acts on a terminal and in a page.
const EVIL: &str = "<script>alert(1)</script>\u{1b}]0;evil\u{7}";
/// The same in an address.
const EVIL_ADDRESS: &str = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%1B%5D0%3Bevil%07";

/// Fails if an answer acts on who reads it. The bytes of files are theirs alone.
#[track_caller]
fn assert_harmless(answer: &[u8], of: &str) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
    let acts = |text: &str| text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    assert!(!acts(head) && !head.contains("<script>"), "{of}: {head}");
    let is_file =
        ["octet-stream", "application/x-tar", "application/zstd"].iter().any(|kind| head.contains(kind));
    assert!(is_file || !acts(body), "{of}: {text}");
    assert!(!head.contains("text/html") || !body.contains("<script>"), "{of}: {text}");
    assert!(!head.starts_with("HTTP/1.1 5"), "{of}: {text}");
}

#[test]
fn hostile_names_logs_and_headers_stay_text_behind_every_door() {
    let odd = "mkdir -p $out/bin; n=$(printf '<b>\\033[31m\"x'); echo hi > \"$out/bin/$n\"; chmod +x \"$out/bin/$n\"";
    let words = format!("printf '{}\\n'; exit 3", EVIL.replace('\u{1b}', "\\033").replace('\u{7}', "\\007"));
    let scene = Scene::new(
        [
            (format!("\"{EVIL}\""), Derivation::new("odd", odd).to_nix()),
            ("failing".to_owned(), Derivation::new("failing", &words).to_nix()),
            ("broken".to_owned(), format!("throw \"{EVIL}\"")),
            ("plain".to_owned(), derivations::text_file("plain", "plain").to_nix()),
        ],
        "",
    );
    let odd_path = {
        let details = scene.http.get(&format!("/api/v1/catalogue/pkgs/{EVIL_ADDRESS}")).body;
        let details: serde_json::Value = serde_json::from_slice(&details).expect("JSON");
        details["outputs"][0]["hash"].as_str().expect("a hash").to_owned()
    };
    let derivation = told(&scene.ondine, "failing")["derivation"].as_str().expect("one").to_owned();
    let greeter = scene.store.instantiate(&greeter());
    let (drv, greet) = (base_name(&greeter.drv), hash(greeter.out()));
    let doors: Vec<String> = [
        "/",
        "/packages",
        "/packages/pkgs/",
        "/packages/pkgs/EVIL",
        "/packages/pkgs/?q=EVIL",
        "/packages/pkgs/broken",
        "/search?q=EVIL",
        "/failures",
        "/statistics",
        "/reference",
        "/sign-in?back=EVIL",
        "/derivations/DRV",
        "/derivations/FAILING",
        "/paths/GREET",
        "/paths/ODD",
        "/file/ODD/",
        "/file/ODD/bin",
        "/file/ODD/EVIL",
        "/ODD.ls",
        "/ODD.narinfo",
        "/bin/EVIL",
        "/bin/pkgs/EVIL/x",
        "/bin/pkgs/EVIL/%3Cb%3E%1B%5B31m%22x",
        "/bin/failing",
        "/bin/pkgs/greet/EVIL",
        "/closure/pkgs/EVIL.tar",
        "/closure/pkgs/nobodyEVIL.tar.zst",
        "/closure/pkgs/failing.closure",
        "/image/pkgs/EVIL.tar",
        "/image/pkgs/nobodyEVIL.tar",
        "/run/pkgs/EVIL",
        "/run/pkgs/greet?program=EVIL",
        "/run/pkgs/nobodyEVIL",
        "/get/pkgs/EVIL",
        "/get/pkgs/?q=EVIL",
        "/get/EVIL/x",
        "/api/v1/programs/EVIL",
        "/api/v1/explain/EVIL",
        "/api/v1/catalogue/pkgs/EVIL",
        "/api/v1/catalogue/pkgs/",
        "/api/v1/failures",
        "/api/v1/status",
        "/debuginfo/EVIL",
        "/nobody-has-EVIL",
    ]
    .map(|door| {
        let door = door.replace("EVIL", EVIL_ADDRESS).replace("ODD", &odd_path).replace("GREET", greet);
        door.replace("DRV", drv).replace("FAILING", &derivation)
    })
    .into();
    let hosts = ["x", "x\"><script>alert(1)</script>", "a';touch$IFS/x;'", "x\u{1b}]0;evil\u{7}"];
    for door in &doors {
        for accept in ["*/*", "text/html", "application/json"] {
            // Each door once with every host.
            for host in
                if accept == "text/html" || door.starts_with("/run") { &hosts[..] } else { &hosts[..1] }
            {
                let request = format!(
                    "GET {door} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nUser-Agent: {EVIL}\r\nX-Forwarded-Host: {host}\r\n\
                     Connection: close\r\n\r\n"
                );
                let (answer, _) = raw(scene.ondine.address(), request.as_bytes(), SOON);
                if answer.is_empty() {
                    continue;
                }
                assert_harmless(&answer, &format!("{door} of {host:?} as {accept}"));
            }
        }
    }
    let log = scene.ondine.log();
    assert!(!log.contains('\u{1b}') && !log.contains('\u{7}'), "{log}");
    let script = scene.http.get(&format!("/run/pkgs/{EVIL_ADDRESS}"));
    assert_eq!(script.status, 200, "{}", script.text());
    let folder = Folder::new();
    std::fs::write(folder.path().join("run.sh"), script.body).expect("written");
    shell(&format!("sh -n {}", text(&folder.path().join("run.sh"))));
}
