//! Packages to install: the tarball with its installer, the Debian package, the container image, the bill of
//! materials. Tests that need more than Rust and binutils are ignored; `.ci/run` runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{Finished, run};
use crate::support::{Release, text};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Names a static program for the image, made with a musl target.
const STATIC_PROGRAM: &str = "ONDINE_TEST_STATIC_PROGRAM";

fn packaging(script: &str, program: &str, out: &Path) -> Finished {
    let mut command = Command::new(format!("{ROOT}/packaging/{script}"));
    command.arg(program).arg(out);
    run(command)
}

fn command(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    run(command)
}

/// The only file in a folder whose name ends like this.
#[track_caller]
fn made(folder: &Path, ending: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = entries.filter(|path| text(path).ends_with(ending)).collect();
    assert_eq!(found.len(), 1, "files that end with {ending}: {found:?}");
    found.remove(0)
}

/// Paths of all files below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let listed = command("find", &[text(folder), "-type", "f", "-printf", "%P\\n"]).must_succeed().text();
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn the_tarball_verifies_installs_and_uninstalls_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    packaging("tarball", env!("CARGO_BIN_EXE_ondine"), folder.path()).must_succeed();
    made(folder.path(), ".debug.gz");
    let tarball = made(folder.path(), ".tar.gz");
    command("tar", &["-xzf", text(&tarball), "-C", text(folder.path())]).must_succeed();
    let tree = PathBuf::from(text(&tarball).strip_suffix(".tar.gz").expect("its name"));
    let prefix = folder.path().join("prefix");
    let installer = tree.join("install.sh");
    let install = |more: &[&str]| command(text(&installer), &[&["--prefix", text(&prefix)], more].concat());

    install(&[]).must_succeed();
    let program = prefix.join("bin/ondine");
    let version = command(text(&program), &["--version"]).must_succeed().text();
    assert_eq!(version.trim(), format!("ondine {}", env!("CARGO_PKG_VERSION")));
    let unit = std::fs::read_to_string(prefix.join("lib/systemd/system/ondine.service")).expect("the unit");
    let settings = prefix.join("etc/ondine/ondine.toml");
    let start = format!("ExecStart={} serve --config {}\n", program.display(), settings.display());
    assert!(unit.contains(&start), "{unit}");
    assert!(prefix.join("share/man/man1/ondine-serve.1").exists());
    assert!(prefix.join("share/bash-completion/completions/ondine").exists());
    command(text(&program), &["check-config", "--settings-only", text(&settings)]).must_succeed();

    std::fs::write(&settings, "listen = \"127.0.0.1:1234\"\n").expect("written");
    install(&[]).must_succeed();
    let kept = std::fs::read_to_string(&settings).expect("the settings");
    assert!(kept.contains("1234"), "an update has replaced the settings: {kept}");
    install(&["--uninstall"]).must_succeed();
    assert_eq!(files(&prefix), ["etc/ondine/ondine.toml"]);

    std::fs::write(tree.join("README.md"), "not what was packed").expect("written");
    let said = install(&[]).must_fail().stderr;
    assert!(said.contains("SHA256SUMS") && said.contains("download them again"), "{said}");
    assert!(!program.exists());
    let said = command(text(&installer), &["--prefx", "/x"]).must_fail().stderr;
    assert!(said.contains("--prefx is no option"), "{said}");
}

#[test]
fn the_program_and_its_debug_file_are_apart_and_belong_together() {
    let folder = tempfile::tempdir().expect("a folder");
    packaging("stage", env!("CARGO_BIN_EXE_ondine"), folder.path()).must_succeed();
    let program = folder.path().join("ondine");
    let sections = command("readelf", &["--sections", "--wide", text(&program)]).must_succeed().text();
    assert!(!sections.contains(".debug_line") && !sections.contains(".symtab"), "{sections}");
    assert!(sections.contains(".gnu_debuglink"), "{sections}");
    let debug = folder.path().join("ondine.debug");
    let sections = command("readelf", &["--sections", "--wide", text(&debug)]).must_succeed().text();
    assert!(sections.contains(".debug_line"), "{sections}");
}

#[test]
fn the_bill_of_materials_lists_the_linked_crates_with_their_checksums() {
    let listed = command(&format!("{ROOT}/packaging/sbom"), &[]).must_succeed().text();
    let bill: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let components = bill["components"].as_array().expect("components");
    let named = |name: &str| components.iter().find(|component| component["name"] == name);
    assert!(components.len() > 80, "only {}", components.len());
    assert!(named("proptest").is_none() && named("criterion").is_none(), "tests are not linked");
    let hyper = named("hyper").expect("the HTTP server is linked");
    assert_eq!(hyper["licenses"][0]["expression"], "MIT");
    for component in components.iter().filter(|component| component["name"] != "narinfo") {
        let checksum = component["hashes"][0]["content"].as_str().map(str::len);
        assert_eq!(checksum, Some(64), "{component}");
    }
}

#[test]
fn an_image_of_a_program_that_needs_libraries_is_not_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = packaging("oci", env!("CARGO_BIN_EXE_ondine"), folder.path()).must_fail().stderr;
    assert!(said.contains("needs shared libraries"), "{said}");
    assert!(files(folder.path()).is_empty());
}

#[test]
#[ignore = "needs skopeo, umoci and a program of a musl target"]
fn the_image_is_reproducible_and_its_program_serves() {
    let program =
        std::env::var(STATIC_PROGRAM).unwrap_or_else(|_| panic!("{STATIC_PROGRAM} names no program"));
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let images = folders.each_ref().map(|folder| {
        packaging("oci", &program, folder.path()).must_succeed();
        made(folder.path(), ".oci.tar")
    });
    command("cmp", &[text(&images[0]), text(&images[1])]).must_succeed();

    let archive = format!("oci-archive:{}", images[0].display());
    let shown = command("skopeo", &["inspect", "--config", &archive]).must_succeed().text();
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["config"]["Entrypoint"], serde_json::json!(["/usr/bin/ondine"]));
    let copy = format!("oci:{}:test", folders[0].path().join("copy").display());
    command("skopeo", &["copy", &archive, &copy]).must_succeed();
    let bundle = folders[0].path().join("bundle");
    let layout = format!("{}:test", folders[0].path().join("copy").display());
    command("umoci", &["unpack", "--image", &layout, text(&bundle)]).must_succeed();
    let root = bundle.join("rootfs");
    let check = ["/usr/bin/ondine", "check-config", "--settings-only", "/etc/ondine/ondine.toml"];
    command("chroot", &[&["--userspec=990:990", text(&root), "/usr/bin/ondine"], &check[1..]].concat())
        .must_succeed();
    let owner =
        command("stat", &["--format=%u %a", text(&root.join("var/lib/ondine"))]).must_succeed().text();
    assert_eq!(owner.trim(), "990 700");
}

#[test]
#[ignore = "needs cargo-deb and a program of a musl target"]
fn a_release_has_every_package_and_their_checksums() {
    let program =
        std::env::var(STATIC_PROGRAM).unwrap_or_else(|_| panic!("{STATIC_PROGRAM} names no program"));
    let out = tempfile::tempdir().expect("a folder");
    let script = format!("{ROOT}/packaging/release");
    let arguments = [text(out.path()), env!("CARGO_BIN_EXE_ondine"), &program];
    command(&script, &arguments).must_succeed();
    for ending in [".deb", ".tar.gz", ".debug.gz", ".oci.tar", ".cdx.json"] {
        made(out.path(), ending);
    }
    let check = format!("cd {} && sha256sum --check --strict SHA256SUMS", out.path().display());
    let checked = command("sh", &["-c", &check]).must_succeed().text();
    assert_eq!(checked.lines().count(), 5, "{checked}");
    let said = command(&script, &arguments).must_fail().stderr;
    assert!(said.contains("is not empty"), "a release would have files of another: {said}");
}

/// Lays a package over a chroot in a mount namespace of its own, and runs a script there.
const IN_CHROOT: &str = r#"
set -eu
root=$1 folder=$2 package=$3 script=$4
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
mount --rbind /dev "$folder/root/dev"
mount -t proc proc "$folder/root/proc"
cp "$package" "$folder/root/tmp/ondine.deb"
exec chroot "$folder/root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
    bash -euxc "$script"
"#;

/// Installs the package, runs the server as its unit would, and purges it.
const LIFE: &str = r#"
dpkg --install /tmp/ondine.deb
getent passwd ondine
test "$(stat --format=%a:%U:%G /var/lib/ondine)" = 700:ondine:ondine
test -L /etc/systemd/system/multi-user.target.wants/ondine.service
test -s /usr/share/man/man1/ondine-serve.1.gz
test -s /usr/share/bash-completion/completions/ondine
dpkg-query --show --showformat '${Conffiles}' ondine | grep /etc/ondine/ondine.toml
start=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/ondine.service)
setpriv --reuid=ondine --regid=ondine --clear-groups --no-new-privs \
    env STATE_DIRECTORY=/var/lib/ondine ONDINE_LISTEN=127.0.0.1:0 $start >/tmp/printed &
server=$!
for _ in $(seq 300); do grep -q extra-trusted-public-keys /tmp/printed && break; sleep 0.1; done
port=$(sed -n 's,^url: http://127.0.0.1:,,p' /tmp/printed)
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /nix-cache-info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n' >&3
grep 'StoreDir: /nix/store' <&3
test "$(stat --format=%a:%U /var/lib/ondine/signing-key)" = 600:ondine
kill -TERM $server
wait $server
dpkg --purge ondine
for gone in /usr/bin/ondine /etc/ondine /var/lib/ondine /etc/systemd/system/multi-user.target.wants/ondine.service
do
    test ! -e "$gone" -a ! -L "$gone"
done
echo all well
"#;

#[test]
#[ignore = "needs cargo-deb and ONDINE_TEST_CHROOTS"]
fn the_debian_package_installs_serves_and_purges_in_each_chroot() {
    let folder = tempfile::tempdir().expect("a folder");
    packaging("deb", env!("CARGO_BIN_EXE_ondine"), folder.path()).must_succeed();
    let package = made(folder.path(), ".deb");
    let chroots: Vec<PathBuf> = Release::all()
        .into_iter()
        .filter_map(|release| match release {
            Release::Chroot { root, .. } => Some(root),
            Release::Host => None,
        })
        .collect();
    assert!(!chroots.is_empty(), "ONDINE_TEST_CHROOTS names no chroot");
    for root in chroots {
        let place = tempfile::tempdir().expect("a folder");
        let mut life = Command::new("unshare");
        life.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_CHROOT, "sh", text(&root)]);
        life.args([text(place.path()), text(&package), LIFE]);
        let said = run(life).must_succeed().text();
        assert!(said.trim_end().ends_with("all well"), "{}: {said}", root.display());
    }
}
