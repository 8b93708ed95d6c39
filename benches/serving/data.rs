//! Served data: store paths made by Nix out of files that a seed decides, and the static files that nginx
//! serves of them, fetched from Ondine itself. Every run makes the same files; only the store, and with it
//! the names of paths, differ.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::support::addresses::{base_name, field, narinfo_address};
use crate::support::http::Ending;
use crate::support::store::Folder;
use crate::support::{Cache, Derivation, Http, NixStore, Release, text, wait_until};

/// Time that packing all of it may take.
pub const PACKED_WITHIN: Duration = Duration::from_secs(600);
/// Where the bytes come from.
const SEED: u64 = 20_260_801;

/// Amounts of data.
#[derive(Clone, Copy)]
pub struct Size {
    /// Groups of small paths; each path refers to some of the group before.
    pub groups: usize,
    /// Small paths of one group, each an output of the group's derivation.
    pub group_paths: usize,
    /// The path of mixed files: how many, and their bytes.
    pub large: (usize, u64),
    /// The path of small files alone.
    pub many: (usize, u64),
}

/// Data of a measurement.
pub const FULL: Size =
    Size { groups: 10, group_paths: 200, large: (9_900, 512 << 20), many: (20_000, 65_000_000) };
/// For those who change the benchmark itself.
pub const QUICK: Size = Size { groups: 4, group_paths: 50, large: (300, 16 << 20), many: (600, 2_000_000) };

/// The paths, in a store with its daemon, and a stopped Ondine that serves all of them packed.
pub struct Data {
    /// The store, and the server that has adopted all of it.
    pub cache: Cache,
    /// The small paths.
    pub small: Vec<PathBuf>,
    /// Its closure is the small paths and itself.
    pub closure: PathBuf,
    /// The path of mixed files, a few of them large.
    pub large: PathBuf,
    /// The path of very many small files.
    pub many: PathBuf,
    /// The same cache as static files.
    pub files: Folder,
}

impl Data {
    /// Makes the paths, has Ondine serve and pack them, and lays out its answers as files.
    #[track_caller]
    pub fn make(size: Size) -> Data {
        let store = NixStore::new(Release::Host);
        let mut progress = Progress::new();
        let [closure, large, many] = realise(&store, size);
        progress.note("built");
        let cache = Cache::of(store, &[], &[]);
        for path in [&closure, &large, &many] {
            cache.narinfo(path);
        }
        let small: Vec<PathBuf> =
            cache.closure(&[&closure]).into_iter().filter(|path| *path != closure).collect();
        assert_eq!(small.len(), size.groups * size.group_paths, "the closure is not what it was to be");
        let all = small.len() as u64 + 3;
        progress.note("adopted");
        wait_until("all paths are packed", PACKED_WITHIN, || packed(&cache.http) == all);
        progress.note("packed");
        let mut data = Data { cache, small, closure, large, many, files: Folder::new() };
        data.lay_out();
        progress.note("laid out as files");
        assert!(data.cache.ondine.sigterm().success());
        data
    }

    /// Narinfos, compressed NARs, and the plain NARs of the two trees, each under the address it has at
    /// Ondine.
    fn lay_out(&self) {
        self.files.subfolder("nar");
        self.keep("/nix-cache-info");
        for path in self.small.iter().chain([&self.closure, &self.large, &self.many]) {
            let narinfo = self.keep(&narinfo_address(path));
            let narinfo = std::fs::read_to_string(narinfo).expect("it was just written");
            let nar = format!("/{}", field(&narinfo, "URL"));
            self.keep(&nar);
            if [&self.large, &self.many].contains(&path) {
                self.keep(nar.strip_suffix(".zst").expect("Ondine's NARs are zstd files"));
            }
        }
    }

    /// Sizes of all, in bytes of the plain NARs and of the zstd files.
    pub fn describe(&self) -> String {
        let count = |path: &PathBuf| {
            let narinfo = self.files.path().join(&narinfo_address(path)[1..]);
            let narinfo = std::fs::read_to_string(narinfo).expect("it was laid out");
            ["NarSize", "FileSize"].map(|name| field(&narinfo, name).parse::<u64>().expect("a size"))
        };
        let sum = |paths: &[PathBuf]| {
            let all = paths.iter().map(count);
            let [nar, file] = all.fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
            format!("{nar} bytes, {file} as zstd")
        };
        let Data { small, large, many, .. } = self;
        let [large, many] = [large, many].map(|path| sum(std::slice::from_ref(path)));
        format!("small: {} paths of {}; large: {large}; many: {many}", small.len(), sum(small))
    }

    /// Fetches one address into its file.
    fn keep(&self, address: &str) -> PathBuf {
        let file = self.files.path().join(&address[1..]);
        let mut answer = self.cache.http.open(address, &[]);
        assert_eq!(answer.status, 200, "{address}");
        let mut written = File::create(&file).expect("the folder can be written to");
        loop {
            match answer.next_piece() {
                Ok(piece) => written.write_all(&piece).expect("the disk has room"),
                Err(Ending::Complete) => return file,
                Err(Ending::Cut(why)) => panic!("{address} was cut: {why}"),
            }
        }
    }
}

/// Tells a person who waits what is done.
struct Progress(Instant);

impl Progress {
    fn new() -> Progress {
        eprintln!("making the paths, and packing them");
        Progress(Instant::now())
    }

    fn note(&mut self, done: &str) {
        eprintln!("the paths are {done}: {:.1?}", self.0.elapsed());
        self.0 = Instant::now();
    }
}

/// Number of NARs that a server has packed.
pub fn packed(http: &Http) -> u64 {
    let status = http.get("/api/v1/status").body;
    let status: serde_json::Value = serde_json::from_slice(&status).expect("the status is JSON");
    status["cache"]["nars"].as_u64().expect("NARs are counted")
}

/// Builds all paths: that whose closure are the small ones, the mixed one, and that of small files.
fn realise(store: &NixStore, size: Size) -> [PathBuf; 3] {
    let sources = Folder::new();
    let mut seed = Seed::new();
    for group in 0..size.groups {
        let folder = sources.subfolder(&format!("small/{group}"));
        for output in 0..size.group_paths {
            let bytes = 1_000 + seed.below(19_000);
            seed.write_file(&folder.join(format!("o{output}")), bytes);
        }
    }
    seed.write_tree(&sources.subfolder("large"), size.large, 8);
    seed.write_tree(&sources.subfolder("many"), size.many, 0);
    let copied = |name: &str| {
        Derivation::new(name, &format!("cp -r '{}/{name}' \"$out\"", text(sources.path()))).to_nix()
    };
    let closure = closure(size, &sources.path().join("small"));
    let drvs = store.nix_instantiate(&format!("[ ({closure}) {} {} ]", copied("large"), copied("many")));
    let mut arguments = vec!["--realise"];
    arguments.extend(drvs.iter().map(|drv| text(drv)));
    let outputs: Vec<PathBuf> = store.nix_store(&arguments).lines().map(PathBuf::from).collect();
    outputs.try_into().unwrap_or_else(|outputs| panic!("three paths were to be built, not {outputs:?}"))
}

/// A derivation that refers to the last group of small paths; each of a group refers to three of the group
/// before.
fn closure(size: Size, sources: &Path) -> String {
    let script = r#"
earlier=($earlier) k=0
for output in $outputs; do
    cp "$source/$output" "''${!output}"
    for step in 0 1 2; do
        [ -z "''${earlier[0]}" ] || echo "''${earlier[(k + step) % ''${#earlier[@]}]}" >> "''${!output}"
    done
    k=$((k + 1))
done
:
"#;
    format!(
        r#"let
base = name: script: {{
    inherit name; system = builtins.currentSystem; builder = "/bin/bash"; args = [ "-e" "-c" script ];
    PATH = "/usr/bin:/bin";
}};
group = number: derivation (base "small-${{toString number}}" ''{script}'' // {{
    outputs = builtins.genList (n: "o${{toString n}}") {paths};
    source = "{sources}/${{toString number}}";
    earlier = if number == 0 then [ ] else (group (number - 1)).all;
}});
in derivation (base "closure" "printf '%s\\n' $last > $out" // {{ last = (group {last}).all; }})"#,
        paths = size.group_paths,
        sources = text(sources),
        last = size.groups - 1,
    )
}

/// Words and numbers that look random and are always the same.
pub struct Seed {
    random: Random,
    words: Vec<Vec<u8>>,
}

impl Seed {
    /// From the beginning.
    pub fn new() -> Seed {
        let mut seed = Seed { random: Random(SEED), words: Vec::new() };
        for _ in 0..4096 {
            let letters = 2 + seed.below(9);
            let mut word: Vec<u8> = (0..letters).map(|_| b'a' + seed.below(26) as u8).collect();
            word.push(if seed.below(12) == 0 { b'\n' } else { b' ' });
            seed.words.push(word);
        }
        seed
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// The hash of a store path that nobody has.
    pub fn hash(&mut self) -> String {
        self.random.hash()
    }

    /// A file that compresses about as well as programs do: words, some more frequent than others, with noise
    /// between.
    fn write_file(&mut self, file: &Path, bytes: u64) {
        let created = File::create(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut out = BufWriter::with_capacity(1 << 20, created);
        let mut left = usize::try_from(bytes).expect("files fit in memory");
        let mut put = |piece: &[u8]| {
            let piece = &piece[..piece.len().min(left)];
            out.write_all(piece).expect("the disk has room");
            left -= piece.len();
            left > 0
        };
        loop {
            let random = self.random.next();
            let word = ((random & 0xfff) * ((random >> 12) & 0xfff)) >> 12;
            let more = match (random >> 32) & 0x3f {
                0 => put(&[random.to_le_bytes(), self.random.next().to_le_bytes()].concat()),
                _ => put(&self.words[word as usize]),
            };
            if !more {
                break;
            }
        }
        out.flush().expect("the disk has room");
    }

    /// So many files of so many bytes in all, a hundred to a folder. The sizes differ widely; `giants` files
    /// have a quarter of all bytes between them.
    fn write_tree(&mut self, folder: &Path, (files, bytes): (usize, u64), giants: usize) {
        let giant = if giants == 0 { 0 } else { bytes / 4 / giants as u64 };
        let weights: Vec<f64> =
            (giants..files).map(|_| 2f64.powf(self.below(1 << 20) as f64 / f64::from(1 << 17))).collect();
        let scale = (bytes - giant * giants as u64) as f64 / weights.iter().sum::<f64>();
        let sizes = std::iter::repeat_n(giant, giants).chain(weights.iter().map(|w| (w * scale) as u64));
        for (number, size) in sizes.enumerate() {
            let inner = folder.join(format!("folder-{}", number / 100));
            std::fs::create_dir_all(&inner).expect("the folder can be written to");
            self.write_file(&inner.join(format!("file-{number}")), size.max(1));
        }
    }
}

/// The name of a store path without its hash.
pub fn name(path: &Path) -> &str {
    &base_name(path)[33..]
}
