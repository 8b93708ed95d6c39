//! Downloads for people without Nix: programs by name, whole closures as tar files, exports and images, and
//! the script that runs a program. What is missing is built, with a true status; what they unpack to runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::addresses::base_name;
use crate::support::http::raw;
use crate::support::package_set::{get, wait_for_generation};
use crate::support::process::run;
use crate::support::store::Folder;
use crate::support::uploads::{HASH, Uploads, nar};
use crate::support::{
    Derivation, Http, NixStore, Ondine, PackageSet, Release, derivations, text, wait_until,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Time limit of a build, or of an answer.
const SOON: Duration = Duration::from_secs(60);

/// A program that says hello, by means of a library of another path, and a long name beside it.
pub(crate) fn greeter() -> Derivation {
    let lib = Derivation::new("words", "mkdir $out; echo 'hello from the closure' > $out/words");
    let script = r#"
mkdir -p "$out/bin" "$out/share/$(printf 'a%.0s' {1..90})"
printf '#!/bin/sh\nread -r line < %s/words\necho "$line" "$@"\n' "$lib" > "$out/bin/greet"
chmod +x "$out/bin/greet"
echo data > "$out/bin/data"
echo long > "$out/share/$(printf 'a%.0s' {1..90})/$(printf 'b%.0s' {1..90})"
ln -s greet "$out/bin/welcome"
"#;
    Derivation::new("greet-1.2", script).input("lib", &lib)
}

/// A server with a set that has the greeter and others.
pub(crate) struct Scene {
    pub(crate) ondine: Ondine,
    pub(crate) http: Http,
    pub(crate) set: PackageSet,
    _daemon: support::Daemon,
    pub(crate) store: NixStore,
}

impl Scene {
    pub(crate) fn new(more: impl IntoIterator<Item = (String, String)>, within: &str) -> Scene {
        let store = NixStore::new(Release::Host);
        let daemon = store.daemon();
        let mut attributes = vec![("greet".to_owned(), greeter().to_nix())];
        attributes.extend(more);
        let set = PackageSet::new(attributes);
        let ondine = set.serve(&store, "build-from = ['catalogue']", within);
        wait_for_generation(&ondine);
        Scene { http: Http::new(&ondine.url()), ondine, set, _daemon: daemon, store }
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.set.paths(&self.store, "greet").1
    }

    /// A file with the body of an answer.
    #[track_caller]
    pub(crate) fn download(&self, folder: &Folder, address: &str) -> PathBuf {
        let answer = get(&self.ondine, address);
        assert_eq!(answer.status, 200, "{address}: {}", answer.text());
        let file = folder.path().join("download");
        std::fs::write(&file, answer.body).expect("written");
        file
    }
}

pub(crate) fn hash(path: &Path) -> &str {
    &base_name(path)[..32]
}

#[track_caller]
pub(crate) fn shell(script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]);
    run(command).must_succeed().text()
}

#[test]
fn a_program_is_had_by_its_name_and_built_for_it_with_a_true_status() {
    let gated_store = NixStore::new(Release::Host);
    let gate = gated_store.gate();
    let slow =
        format!("{}mkdir -p $out/bin; echo x > $out/bin/slow; chmod +x $out/bin/slow", gate.script("slow"));
    let linked = Derivation::new(
        "greet-static",
        "mkdir -p $out/bin; echo static > $out/bin/tool; chmod +x $out/bin/tool",
    );
    let scene = Scene::new(
        [
            ("failing".to_owned(), derivations::failing("failing").to_nix()),
            ("slow".to_owned(), Derivation::new("slow", &slow).to_nix()),
            (
                "tool".to_owned(),
                Derivation::new(
                    "tool",
                    "mkdir -p $out/bin; echo dynamic > $out/bin/tool; chmod +x $out/bin/tool",
                )
                .to_nix(),
            ),
            ("musl".to_owned(), format!("{{ recurseForDerivations = true; tool = {}; }}", linked.to_nix())),
        ],
        "static-attributes = 'musl'",
    );
    let http = &scene.http;
    assert_eq!(http.head("/bin/greet").status, 404, "HEAD builds nothing");
    assert!(!scene.store.is_valid(&scene.out()));
    let program = http.get("/bin/greet");
    assert_eq!((program.status, program.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!(program.body, std::fs::read(scene.out().join("bin/greet")).expect("it was built"));
    assert_eq!(program.header("content-disposition"), Some("attachment; filename=\"greet\""));
    let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(&program.body)));
    assert_eq!(program.header("repr-digest"), Some(&*digest));
    let tag = program.header("etag").expect("a tag").to_owned();
    assert_eq!(http.get_with("/bin/greet", &[("If-None-Match", &tag)]).status, 304);
    let part = http.get_with("/bin/greet", &[("Range", "bytes=2-8")]);
    assert_eq!((part.status, part.text().as_str()), (206, "/bin/sh"));
    assert_eq!(http.head("/bin/greet").header("content-length"), Some(&*program.body.len().to_string()));
    // By its attribute, and by a symlink beside it.
    assert_eq!(http.get("/bin/pkgs/greet/welcome").body, program.body);
    // The statically linked one first.
    assert_eq!(http.get("/bin/tool").text(), "static\n");
    assert_eq!(http.get("/bin/pkgs/tool/tool").text(), "dynamic\n");

    for (address, status, words) in [
        ("/bin/gret", 404, "did you mean greet?"),
        ("/bin/pkgs/gret/greet", 404, "did you mean greet?"),
        ("/bin/pkgs/greet/gret", 404, "did you mean greet?"),
        ("/bin/pkgs/greet/data", 404, "not executable"),
        ("/bin/other/greet/greet", 404, "no package set other"),
        ("/bin/failing", 404, "the last words of a failing build"),
        ("/bin/greet?system=pdp11-linux", 404, "evaluated for"),
        ("/bin/greet?wait=301", 400, "wait is a number of seconds, 0 to 300"),
        ("/bin/%2e%2e%2fetc", 404, "nothing has this address"),
    ] {
        let answer = http.get(address);
        assert!(
            answer.status == status && answer.text().contains(words),
            "{address}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let failed = http.get_with("/bin/failing", &[("Accept", "application/json")]);
    let failed: Value = serde_json::from_slice(&failed.body).expect("JSON");
    assert!(failed["log"].as_str().is_some_and(|log| get(&scene.ondine, log).status == 200), "{failed:#}");
    assert_eq!(failed["log_lines"][0], "the last words of a failing build");

    // Not a byte before the status; who does not wait is told where the state is.
    let request = b"GET /bin/slow HTTP/1.1\r\nHost: x\r\n\r\n";
    let address = scene.ondine.address().to_owned();
    let silent = std::thread::spawn(move || raw(&address, request, Duration::from_secs(2)));
    gate.wait_for_starts(1);
    let pending = http.get("/bin/slow?wait=0");
    let state: Value = serde_json::from_slice(&pending.body).expect("JSON");
    assert_eq!((pending.status, &state["state"]), (202, &Value::from("building")), "{state:#}");
    let place = pending.header("location").expect("an address").to_owned();
    assert_eq!(http.get(&place).status, 200);
    assert_eq!(silent.join().expect("no panic").0, b"");
    gate.open();
    wait_until("it is built", SOON, || http.get("/bin/slow?wait=0").status == 200);
}

#[test]
fn a_program_is_found_by_its_name_in_built_outputs_and_in_descriptions() {
    let tools = |name: &str, programs: &str, more: &str| {
        let script = format!(
            "mkdir -p $out/bin; cd $out/bin; for p in {programs}; do echo {name} > $p; chmod +x $p; done"
        );
        (name.to_owned(), format!("({}) // {{ {more} }}", Derivation::new(name, &script).to_nix()))
    };
    let linked = tools("linked", "rg", "meta.mainProgram = \"rg\";").1;
    let scene = Scene::new(
        [
            tools("ripgrep", "rg rg-extra", "meta.mainProgram = \"rg\";"),
            tools("coreutils", "ls cat", ""),
            tools("liar", "other", "meta.mainProgram = \"odd\";"),
            tools("honest", "odd", "meta.mainProgram = throw \"none\";"),
            ("musl".to_owned(), format!("{{ recurseForDerivations = true; linked = {linked}; }}")),
        ],
        "static-attributes = 'musl'",
    );
    let http = &scene.http;
    let packages = |program: &str| {
        let told = http.get(&format!("/api/v1/programs/{program}")).body;
        let told: Value = serde_json::from_slice(&told).expect("JSON");
        let named = |each: &Value| {
            let attribute = each["attribute"].as_str().expect("a name").to_owned();
            (attribute, each["is_certain"] == true, each["served"] == true)
        };
        let found: Vec<_> = told["packages"].as_array().expect("packages").iter().map(named).collect();
        (found, told["similar"].as_str().map(str::to_owned))
    };
    // By descriptions, before anything is built; statically linked ones first.
    let named = |name: &str, is_certain, served| (name.to_owned(), is_certain, served);
    assert_eq!(packages("rg").0, [named("musl.linked", false, false), named("ripgrep", false, false)]);
    assert_eq!(http.get("/bin/rg").text(), "linked\n");
    wait_until("its programs are known", SOON, || packages("rg").0[0] == named("musl.linked", true, true));
    // By what a build has shown.
    assert_eq!((http.get("/bin/cat").status, packages("cat")), (404, (Vec::new(), None)));
    assert_eq!(http.get("/bin/pkgs/coreutils/ls").text(), "coreutils\n");
    wait_until("its programs are known", SOON, || packages("cat").0 == [named("coreutils", true, true)]);
    assert_eq!(http.get("/bin/cat").text(), "coreutils\n");
    assert!(http.get("/bin/catt").text().contains("did you mean cat?"), "{}", http.get("/bin/catt").text());
    assert_eq!(packages("catt").1.as_deref(), Some("cat"));
    // A description that is wrong gives way to what is.
    assert!(http.get("/bin/odd").text().contains("liar has other"), "{}", http.get("/bin/odd").text());
    assert_eq!(http.get("/bin/pkgs/honest/odd").text(), "honest\n");
    wait_until("its programs are known", SOON, || packages("odd").0.contains(&named("honest", true, true)));
    assert_eq!(http.get("/bin/odd").text(), "honest\n");
}

#[test]
fn a_closure_is_the_same_tar_each_time_and_its_program_runs_where_it_is_unpacked() {
    let scene = Scene::new([], "");
    let folder = Folder::new();
    let address = "/closure/pkgs/greet.tar.zst";
    assert_eq!(scene.http.head(address).status, 404, "HEAD builds nothing");
    let first = get(&scene.ondine, address);
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("content-disposition"), Some("attachment; filename=\"greet-1.2.tar.zst\""));
    let by_hash = format!("/closure/{}.tar.zst", hash(&scene.out()));
    assert_eq!(scene.http.get(&by_hash).body, first.body);
    let plain = scene.http.get(&format!("/closure/{}.tar", hash(&scene.out())));
    assert_eq!(plain.body, zstd::decode_all(&first.body[..]).expect("zstd"));
    assert_eq!(scene.http.get("/closure/pkgs/greet.tar").body, plain.body);
    let tag = first.header("etag").expect("a tag").to_owned();
    assert_eq!(scene.http.get_with(address, &[("If-None-Match", &tag)]).status, 304);
    let led = scene.http.get("/get/pkgs/greet.tar.zst");
    assert_eq!((led.status, led.header("location")), (302, Some(&*format!("../..{by_hash}"))));
    let named = scene.http.get("/get/pkgs/greet");
    let nar = named.header("location").expect("a place").trim_start_matches("../..").to_owned();
    assert_eq!(
        scene.http.get(&nar).header("content-disposition"),
        Some("attachment; filename=\"greet-1.2.nar\"")
    );

    // GNU tar and Nix agree about every file.
    let tar = scene.download(&folder, &by_hash);
    let root = folder.subfolder("root");
    shell(&format!("zstd -qdc {} | tar -xf - -C {}", text(&tar), text(&root)));
    for path in scene.store.nix_store(&["--query", "--requisites", text(&scene.out())]).lines() {
        let unpacked = format!("{}{path}", root.display());
        shell(&format!("diff -r --no-dereference {unpacked} {path}"));
    }
    // An empty root, but for a shell.
    shell(&format!(
        "cd {root}; mkdir -p bin; cp -L /bin/sh bin/sh; \
         for f in $(ldd /bin/sh | grep -o '/[^ ]*'); do mkdir -p .$(dirname $f); cp -L $f .$f; done",
        root = text(&root)
    ));
    let said = shell(&format!("chroot {} {} again", text(&root), text(&scene.out().join("bin/greet"))));
    assert_eq!(said.trim(), "hello from the closure again");
    let mut remove = Command::new("rm");
    remove.args(["-r", text(&root)]);
    run(remove).must_succeed();
}

#[test]
fn an_archive_has_a_length_and_ranges_once_it_was_sent_or_a_range_is_wanted() {
    let scene = Scene::new([], "");
    assert_eq!(get(&scene.ondine, "/get/pkgs/greet").status, 302);
    for ending in ["tar", "tar.zst", "closure"] {
        let address = format!("/closure/pkgs/greet.{ending}");
        let unknown = scene.http.head(&address);
        assert_eq!((unknown.status, unknown.header("accept-ranges")), (200, Some("none")), "{ending}");
        // A download that breaks off, before all was sent once.
        let range = |range: &str| scene.http.get_with(&address, &[("Range", range)]);
        let rest = range("bytes=100-");
        assert_eq!(rest.status, 206, "{ending}: {}", rest.text());
        let whole = scene.http.get(&address);
        let length = whole.body.len();
        assert_eq!(whole.header("content-length"), Some(&*length.to_string()), "{ending}");
        assert_eq!(scene.http.head(&address).header("content-length"), Some(&*length.to_string()));
        assert!(rest.body == whole.body[100..], "{ending}");
        let last = length - 1;
        for (from, to) in [(0, 0), (0, last), (last, last), (511, 513), (length / 2, length / 2 + 9)] {
            let part = range(&format!("bytes={from}-{to}"));
            assert!(part.status == 206 && part.body == whole.body[from..=to], "{ending} {from} {to}");
        }
        assert!(range("bytes=-7").body == whole.body[length - 7..], "{ending}");
        assert_eq!(range(&format!("bytes={length}-")).status, 416, "{ending}");
        let tag = whole.header("etag").expect("a tag").to_owned();
        let resumed = [("Range", "bytes=5-"), ("If-Range", &*tag)];
        assert_eq!(scene.http.get_with(&address, &resumed).status, 206);
        let other = [("Range", "bytes=5-"), ("If-Range", "\"other\"")];
        assert_eq!(scene.http.get_with(&address, &other).body.len(), length);
    }
}

#[test]
fn an_export_is_imported_by_nix_into_an_empty_store() {
    let scene = Scene::new([], "");
    let folder = Folder::new();
    let export = scene.download(&folder, "/closure/pkgs/greet.closure");
    let wanted = scene.store.nix_store(&["--query", "--requisites", text(&scene.out())]);
    let mut wanted: Vec<&str> = wanted.lines().collect();
    wanted.sort_unstable();
    for release in Release::all() {
        let settings = [("require-sigs", "false")];
        let client = support::Client::with_settings(release, &scene.store.store_dir(), &settings);
        let script = format!("nix-store --import < {}", text(&export));
        let imported = client.run("bash", &["-c", &script]).must_succeed().text();
        let mut imported: Vec<&str> = imported.lines().collect();
        imported.sort_unstable();
        assert_eq!(imported, wanted);
        client.run("nix-store", &["--verify", "--check-contents"]).must_succeed();
    }
}

#[test]
fn an_image_is_taken_by_skopeo_and_unpacked_by_umoci_and_runs() {
    let scene = Scene::new([], "");
    let folder = Folder::new();
    let image = scene.download(&folder, "/image/pkgs/greet.tar");
    let again = scene.http.get(&format!("/image/{}.tar", hash(&scene.out())));
    assert_eq!(std::fs::read(&image).expect("it is there"), again.body, "an image is the same each time");
    let inspected = shell(&format!("skopeo inspect --config oci-archive:{}", text(&image)));
    let config: Value = serde_json::from_str(&inspected).expect("JSON");
    let program = scene.out().join("bin/greet");
    assert_eq!(config["config"]["Entrypoint"][0], text(&program), "{config:#}");
    assert_eq!(config["os"], "linux");
    let there = folder.path().display();
    shell(&format!(
        "cd {there}; skopeo copy --quiet --insecure-policy docker-archive:{image} oci:layout:greet; umoci unpack --rootless --image layout:greet bundle",
        image = text(&image)
    ));
    let unpacked = format!("{there}/bundle/rootfs{}", text(&scene.out()));
    shell(&format!("diff -r --no-dereference {unpacked} {}", text(&scene.out())));
    // The paths of the closure have a layer each.
    assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_script_fetches_and_runs_a_program_on_a_machine_without_the_store() {
    let scene = Scene::new([], "");
    let folder = Folder::new();
    let script = get(&scene.ondine, "/run/pkgs/greet");
    assert_eq!(
        (script.status, script.header("content-type")),
        (200, Some("text/x-shellscript; charset=utf-8"))
    );
    let file = folder.path().join("run.sh");
    std::fs::write(&file, &script.body).expect("written");
    shell(&format!("sh -n {}", text(&file)));
    // A machine without this store: something else is mounted over it.
    let hidden = |path: &str, arguments: &str| {
        let inner = format!(
            "mount -t tmpfs tmpfs {store} && cd {there} && PATH={path} ONDINE_RUN_DIR={there}/run sh -s -- {arguments} < {file}",
            store = text(&scene.store.store_dir()),
            there = folder.path().display(),
            file = text(&file),
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &inner]);
        run(command)
    };
    for _ in ["cold", "warm"] {
        let ran =
            hidden("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "'with arguments' twice");
        assert!(ran.succeeded(), "{}", ran.stderr);
        assert_eq!(ran.text().trim(), "hello from the closure with arguments twice");
    }
    // Without any of the means, the message names them.
    let tools = folder.subfolder("tools");
    for tool in ["sh", "mkdir", "mktemp", "tar", "curl", "mv", "rm", "cut", "head", "id", "cat"] {
        let found = shell(&format!("command -v {tool}"));
        std::os::unix::fs::symlink(found.trim(), tools.join(tool)).expect("made");
    }
    let refused = hidden(text(&tools), "x").must_fail();
    assert!(refused.stderr.contains("bubblewrap") && refused.stderr.contains("proot"), "{}", refused.stderr);
    let unknown = scene.http.get("/run/pkgs/gret");
    assert!(unknown.status == 404 && unknown.text().contains("did you mean greet?"), "{}", unknown.text());
}

#[test]
fn a_set_is_listed_with_search_for_programs_and_shown_to_browsers() {
    let scene = Scene::new([], "");
    let listed = scene.http.get("/get/pkgs/?q=gre");
    let listed: Value = serde_json::from_slice(&listed.body).expect("JSON");
    assert_eq!(listed["attributes"][0]["attribute"], "greet");
    let browser = scene.http.get_with("/get/pkgs/?q=gre", &[("Accept", "text/html")]);
    assert_eq!((browser.status, browser.header("location")), (302, Some("../../packages/pkgs/?q=gre")));
    let page = scene.http.get_with("/packages/pkgs/?q=gre", &[("Accept", "text/html")]);
    assert_eq!(page.status, 200);
}

#[test]
fn pushed_debugging_symbols_are_found_by_their_build_id() {
    let cache = support::Cache::new(&[]);
    let door = support::Door::to(&cache.ondine);
    let id = "0123456789abcdef0123456789abcdef01234567";
    let script = format!(
        "mkdir -p $out/lib/debug/.build-id/01; echo symbols > $out/lib/debug/.build-id/01/{}.debug",
        &id[2..]
    );
    let pusher =
        support::Client::with_settings(Release::Host, &cache.store.store_dir(), &[("max-jobs", "2")]);
    let built = pusher.build(&Derivation::new("program-debug", &script));
    assert_eq!(cache.http.get(&format!("/debuginfo/{id}")).status, 404);
    let url = format!("{}?index-debug-info=true", door.url());
    pusher.run("nix", &["copy", "--to", &url, text(&built[0])]).must_succeed();
    for address in [format!("/debuginfo/{id}"), format!("/debuginfo/{id}.debug")] {
        let answer = cache.http.get(&address);
        assert_eq!(answer.status, 200, "{address}: {}", answer.text());
        let place: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(place["member"], format!("lib/debug/.build-id/01/{}.debug", &id[2..]));
        let archive =
            place["archive"].as_str().and_then(|archive| archive.strip_prefix("..")).expect("an address");
        assert_eq!(cache.http.get(archive).status, 200);
    }
    let symbols = cache.http.get(&format!("/buildid/{id}/debuginfo"));
    assert_eq!((symbols.status, symbols.text().as_str()), (200, "symbols\n"));
    // The client of elfutils, which gdb and others use.
    let folder = Folder::new();
    let mut find = Command::new("debuginfod-find");
    find.args(["debuginfo", id]).env("DEBUGINFOD_URLS", cache.ondine.url());
    find.env("DEBUGINFOD_CACHE_PATH", folder.path());
    let found = run(find).must_succeed().text();
    assert_eq!(std::fs::read_to_string(found.trim()).expect("it was fetched"), "symbols\n");
    let other = Derivation::new("other-debug", &script.replace("echo symbols", "echo others"));
    let other = pusher.build(&other);
    pusher.run("nix", &["copy", "--to", &url, text(&other[0])]).must_succeed();
    let symbols = cache.http.get(&format!("/buildid/{id}/debuginfo"));
    assert_eq!(symbols.text(), "symbols\n", "the first one stays");
    for address in ["/debuginfo/xyz", "/buildid/00/debuginfo", "/debuginfo/%2e%2e%2f%2e%2e%2fsigning-key"] {
        assert_eq!(cache.http.get(address).status, 404, "{address}");
    }
}

#[test]
fn a_place_of_symbols_that_the_pushed_path_does_not_have_is_not_kept() {
    let uploads = Uploads::new(&[]);
    let contents = nar(b"no folder");
    let name = uploads.upload(&contents);
    let [id, late] = ["ab", "cd"].map(|byte| byte.repeat(20));
    let place = format!(r#"{{"archive": "../nar/{name}.nar", "member": "lib/debug/x.debug"}}"#);
    let narinfo = uploads.narinfo(&format!("{HASH}-p"), &name, &name, &contents, "");
    for id in [&id, &late] {
        assert_eq!(uploads.put(&format!("/debuginfo/{id}"), place.as_bytes()).0, 200);
        assert_eq!(uploads.put(&format!("/{HASH}.narinfo"), narinfo.as_bytes()).0, 200);
        assert_eq!(uploads.cache.http.get(&format!("/debuginfo/{id}")).status, 404);
    }
}

#[test]
fn reading_and_building_need_their_rights_behind_every_door() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new([("greet".to_owned(), greeter().to_nix())]);
    let ondine = set.serve(&store, "build-from = ['catalogue']\nbuild = 'token'", "");
    wait_for_generation(&ondine);
    let http = Http::new(&ondine.url());
    let doors = ["/bin/greet", "/closure/pkgs/greet.tar.zst", "/image/pkgs/greet.tar", "/get/pkgs/greet"];
    for door in doors {
        let refused = http.get(door);
        let told = refused.text();
        assert!(
            refused.status == 404 && told.contains("needs a token with the right \"build\""),
            "{door}: {told}"
        );
    }
    let builder = format!("Bearer {}", ondine.new_token("builder", "read,build", &[]));
    assert_eq!(http.get_with("/bin/greet", &[("Authorization", &builder)]).status, 200);
    for door in doors {
        assert!(matches!(http.get(door).status, 200 | 302), "{door}: what is served is for everyone");
    }
    let wrong = http.get_with("/bin/greet", &[("Authorization", "Bearer ondine_wrong")]);
    assert_eq!(wrong.status, 401, "{}", wrong.text());
}
