//! Request paths, parsed once into types that cannot be wrong.
//! No raw string goes further than this file: what does not parse is no route.

use narinfo::{Compression, DrvOutput, NarHash, StorePath, StorePathHash};
use percent_encoding::percent_decode_str;

use crate::catalogue::{Selection, SetName};
use crate::escape::Line;

/// Bytes of a path at most; a store path's base name has at most 244.
const PATH_BYTES_MAX: usize = 1024;
/// Attributes of one page, unless another number is asked for.
const LISTED_DEFAULT: u32 = 100;
/// The most that may be asked for.
const LISTED_MAX: u32 = 1000;
/// The prefix of the same cache without building.
const CACHED: &str = "cached/";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`: how to use this cache.
    Home,
    /// `/nix-cache-info`
    CacheInfo,
    /// `/<hash>.narinfo`
    NarInfo(StorePathHash),
    /// `/nar/<NarHash>.nar.zst`, `/nar/<NarHash>.nar`; others, such as `.nar.xz`, are with upstreams
    Nar(NarHash, Compression),
    /// `/realisations/<id>.doi`, or from Nix 2.35 on `/build-trace-v2/<derivation>/<output>.doi`
    Realisation(DrvOutput),
    /// `/log/<derivation>`, or an output of one
    Log(StorePath),
    /// `/healthz`: the process lives.
    Health,
    /// `/readyz`: it can do its work.
    Ready,
    /// `/api/v1/status`
    Status,
    /// `/api/v1/queue`
    Queue,
    /// `/api/v1/builds/<number>`
    Build(u64),
    /// `/api/v1/paths/<hash>`
    Path(StorePathHash),
    /// `/api/v1/catalogue`
    Sets,
    /// `/api/v1/catalogue/<name>`
    Set(SetName),
    /// `/api/v1/catalogue/<set>/[?q=…][&system=…][&after=…][&limit=…]`, or what is wrong with what stands behind the question mark
    Attributes(SetName, Result<Wanted, String>),
    /// `/api/v1/catalogue/<set>/<attribute>[?system=…]`
    Attribute(Name),
    /// `/get/<set>/<attribute>[^<output>][?system=…][&compression=…]`
    Download(Name),
    /// `/api/v1/failures`
    Failures,
    /// `/api/v1/pins`
    Pins,
    /// `/metrics`
    Metrics,
}

/// Which attributes of a package set are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What they are like.
    pub like: Option<String>,
    /// The system that they are for, where one is named.
    pub system: Option<String>,
    /// The one after which the list begins.
    pub after: String,
    /// How many at most.
    pub max: u32,
}

/// An attribute of a package set, as an address has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The set.
    pub set: SetName,
    /// The attribute, and the output that is meant, where one is named.
    pub selection: Selection,
    /// The system that it is for, where one is named.
    pub system: Option<String>,
    /// How its contents come: as they are, or as zstd.
    pub compression: Compression,
    /// How many folders below the cache's own address it was asked for: a name may have slashes.
    pub depth: usize,
}

/// A route, and whether a miss may be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What is asked for.
    pub route: Route,
    /// Asked for under `/cached/`: a miss is only reported.
    pub cached: bool,
}

impl Target {
    /// Parses the path of a request and what follows its question mark; `None` when there is nothing of that name.
    #[must_use]
    pub fn parse(path: &str, query: Option<&str>) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        // Older clients ask for a log or a realisation with a bare question mark where the name of the derivation or of
        // its output has one. Else only what is asked for by name has a use for a query.
        let plain = path.strip_prefix(CACHED).unwrap_or(path);
        let bare = plain.starts_with("log/") || plain.starts_with("realisations/");
        let name = query.filter(|_| bare).map(|query| format!("{path}?{query}"));
        let path = name.as_deref().unwrap_or(path);
        let plain = path.strip_prefix(CACHED).unwrap_or(path);
        if path.len() > PATH_BYTES_MAX {
            return None;
        }
        let decoded = percent_decode_str(path).decode_utf8().ok()?;
        let (path, cached) = match decoded.strip_prefix(CACHED) {
            Some(rest) => (rest, true),
            None => (&*decoded, false),
        };
        let mut route = route(path, query)?;
        if let Route::Download(name) = &mut route {
            name.depth = plain.matches('/').count();
        }
        Some(Self { route, cached })
    }
}

fn route(path: &str, query: Option<&str>) -> Option<Route> {
    match path {
        "" => return Some(Route::Home),
        "nix-cache-info" => return Some(Route::CacheInfo),
        "healthz" => return Some(Route::Health),
        "readyz" => return Some(Route::Ready),
        "api/v1/status" => return Some(Route::Status),
        "api/v1/queue" => return Some(Route::Queue),
        "api/v1/catalogue" => return Some(Route::Sets),
        "api/v1/failures" => return Some(Route::Failures),
        "api/v1/pins" => return Some(Route::Pins),
        "metrics" => return Some(Route::Metrics),
        _ => {}
    }
    // Before all that is known by its ending, which an attribute may have, too.
    if let Some(name) = path.strip_prefix("api/v1/catalogue/") {
        return match name.split_once('/') {
            Some((set, "")) => SetName::new(set).map(|set| Route::Attributes(set, Wanted::parse(query))),
            Some(_) => Name::parse(name, query).map(Route::Attribute),
            None => SetName::new(name).map(Route::Set),
        };
    }
    if let Some(name) = path.strip_prefix("get/") {
        return Name::parse(name, query).map(Route::Download);
    }
    if let Some(hash) = path.strip_suffix(".narinfo") {
        return hash.parse().ok().map(Route::NarInfo);
    }
    if let Some(file) = path.strip_prefix("nar/") {
        return nar(file);
    }
    if path.ends_with(".doi") {
        return DrvOutput::from_file(path).ok().map(Route::Realisation);
    }
    if let Some(id) = path.strip_prefix("api/v1/builds/") {
        return id.parse().ok().map(Route::Build);
    }
    if let Some(hash) = path.strip_prefix("api/v1/paths/") {
        return hash.parse().ok().map(Route::Path);
    }
    StorePath::parse(path.strip_prefix("log/")?).ok().map(Route::Log)
}

/// Ours, and the forms that clients remember from other servers: harmonia's is ours with a query, nix-serve's has
/// the store path's hash before the NAR's.
fn nar(file: &str) -> Option<Route> {
    let (name, ending) = file.split_once(".nar")?;
    let compression = Compression::from_file_ending(ending)?;
    let hash = match name.split_once('-') {
        Some((path_hash, nar_hash)) => {
            path_hash.parse::<StorePathHash>().ok()?;
            nar_hash
        }
        None => name,
    };
    NarHash::from_nixbase32(hash).ok().map(|hash| Route::Nar(hash, compression))
}

/// Whether errors at this address are read by programs.
pub fn is_for_programs(path: &str) -> bool {
    plain(path).split('/').next() == Some("api")
}

/// What to say of an address that nothing has.
pub fn hint(path: &str) -> &'static str {
    let path = plain(path);
    let below = |folder| path.starts_with(folder);
    if path.ends_with(".narinfo") {
        "nothing has this address: a narinfo is at /<hash>.narinfo, where the hash is the first 32 characters of a store path's \
         name, digits and lower-case letters without e, o, t and u"
    } else if below("nar/") {
        "nothing has this address: a NAR is at /nar/<NarHash>.nar.zst or .nar, where its narinfo says, with 52 characters of \
         NarHash"
    } else if below("get/") {
        "nothing has this address: contents are at /get/<set>/<attribute>, with ^<output>, ?system=<system> and \
         &compression=zstd where they are wanted; an attribute is written as Nix writes it, percent-encoded"
    } else if below("log/") {
        "nothing has this address: a log is at /log/<hash>-<name>.drv, the name of a derivation"
    } else if below("realisations/") || below("build-trace-v2/") {
        "nothing has this address: a realisation is at /realisations/sha256:<hash>!<output>.doi"
    } else if is_for_programs(path) {
        "nothing has this address: there are /api/v1/status, /queue, /builds/<number>, /paths/<hash>, /catalogue, \
         /catalogue/<set>, /catalogue/<set>/ (its attributes), /catalogue/<set>/<attribute>, /failures and /pins, all below /api/v1"
    } else {
        "nothing has this address: / tells what there is"
    }
}

fn plain(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.strip_prefix(CACHED).unwrap_or(path)
}

/// What stands behind a question mark, by name.
fn options(query: Option<&str>) -> impl Iterator<Item = (&str, Option<String>)> {
    let pairs = query.into_iter().flat_map(|query| query.split('&')).filter_map(|one| one.split_once('='));
    pairs.map(|(key, value)| (key, percent_decode_str(value).decode_utf8().ok().map(Into::into)))
}

impl Wanted {
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut wanted = Self { like: None, system: None, after: String::new(), max: LISTED_DEFAULT };
        for (key, value) in options(query) {
            let value: String = value.ok_or_else(|| format!("{} is no UTF-8", Line(key)))?;
            match key {
                "q" => wanted.like = Some(value).filter(|like| !like.is_empty()),
                "system" => wanted.system = Some(value),
                "after" => wanted.after = value,
                "limit" => {
                    let max = value.parse().ok().filter(|max| (1..=LISTED_MAX).contains(max));
                    wanted.max = max.ok_or_else(|| format!("limit is a number from 1 to {LISTED_MAX}"))?;
                }
                _ => return Err(format!("there is no {}, but q, system, after and limit", Line(key))),
            }
        }
        Ok(wanted)
    }
}

impl Name {
    /// Parses `<set>/<attribute>[^<output>]` and the query behind it.
    fn parse(path: &str, query: Option<&str>) -> Option<Self> {
        let (set, rest) = path.split_once('/')?;
        let mut name = Self {
            set: SetName::new(set)?,
            selection: Selection::parse(rest)?,
            system: None,
            compression: Compression::None,
            depth: 0,
        };
        for (key, value) in options(query) {
            let value: String = value?;
            match key {
                "system" => name.system = Some(value),
                "compression" if value == "none" => name.compression = Compression::None,
                "compression" if value == "zstd" => name.compression = Compression::Zstd,
                _ => return None,
            }
        }
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::AttributePath;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn parse(path: &str) -> Option<Target> {
        Target::parse(path, None)
    }

    #[test]
    fn every_documented_route_is_found_with_and_without_cached() {
        let nar = "0".repeat(52);
        let drv = format!("{HASH}-a+b?c.drv");
        let encoded = drv.replace('+', "%2B").replace('?', "%3F");
        let id = format!("sha256:{}!out", "0f".repeat(32));
        for (path, route) in [
            ("nix-cache-info".to_owned(), Route::CacheInfo),
            (format!("{HASH}.narinfo"), Route::NarInfo(HASH.parse().expect("a hash"))),
            (format!("nar/{nar}.nar.zst"), Route::Nar(NarHash::from_bytes([0; 32]), Compression::Zstd)),
            (format!("nar/{nar}.nar"), Route::Nar(NarHash::from_bytes([0; 32]), Compression::None)),
            (format!("nar/{nar}.nar.xz"), Route::Nar(NarHash::from_bytes([0; 32]), Compression::Xz)),
            (format!("nar/{HASH}-{nar}.nar"), Route::Nar(NarHash::from_bytes([0; 32]), Compression::None)),
            (format!("realisations/{id}.doi"), Route::Realisation(id.parse().expect("an id"))),
            (
                format!("realisations/{}.doi", id.replace('!', "%21")),
                Route::Realisation(id.parse().expect("an id")),
            ),
            (
                format!("build-trace-v2/{encoded}/out.doi"),
                Route::Realisation(
                    DrvOutput::from_file(&format!("build-trace-v2/{drv}/out.doi")).expect("a file"),
                ),
            ),
            (format!("log/{encoded}"), Route::Log(StorePath::parse(&drv).expect("a store path"))),
            ("api/v1/builds/7".to_owned(), Route::Build(7)),
            (format!("api/v1/paths/{HASH}"), Route::Path(HASH.parse().expect("a hash"))),
            ("api/v1/catalogue".to_owned(), Route::Sets),
            ("api/v1/failures".to_owned(), Route::Failures),
            ("api/v1/pins".to_owned(), Route::Pins),
            ("api/v1/catalogue/a-b".to_owned(), Route::Set(SetName::new("a-b").expect("a name"))),
            (String::new(), Route::Home),
        ] {
            assert_eq!(parse(&format!("/{path}")), Some(Target { route: route.clone(), cached: false }));
            assert_eq!(parse(&format!("/cached/{path}")), Some(Target { route, cached: true }));
        }
    }

    #[test]
    fn a_bare_question_mark_belongs_to_the_name_of_a_log_or_a_realisation_and_to_nothing_else() {
        let (drv, nar) = (format!("{HASH}-a?b.drv"), "0".repeat(52));
        let log = Route::Log(StorePath::parse(&drv).expect("a store path"));
        for (prefix, cached) in [("/", false), ("/cached/", true)] {
            let path = format!("{prefix}log/{HASH}-a");
            assert_eq!(Target::parse(&path, Some("b.drv")), Some(Target { route: log.clone(), cached }));
        }
        let id = format!("sha256:{}!a", "0f".repeat(32));
        let realisation = Route::Realisation(format!("{id}?b").parse().expect("an id"));
        let target = Target { route: realisation, cached: false };
        assert_eq!(Target::parse(&format!("/realisations/{id}"), Some("b.doi")), Some(target));
        let path = format!("/nar/{nar}.nar");
        assert_eq!(Target::parse(&path, Some("hash=x")), Target::parse(&path, None));
        assert_eq!(Target::parse(&format!("/log/{HASH}-a"), Some(&"a".repeat(64 * 1024))), None);
    }

    #[test]
    fn a_name_may_have_an_output_a_system_and_a_compression_and_nothing_else() {
        let name = |attribute: &str, output: Option<&str>, system: Option<&str>, compression| {
            let otherwise = output.and_then(|output| AttributePath::parse(&format!("{attribute}^{output}")));
            Name {
                set: SetName::new("pkgs").expect("a name"),
                selection: Selection {
                    path: AttributePath::parse(attribute).expect("a path"),
                    output: output.map(str::to_owned),
                    otherwise,
                },
                system: system.map(str::to_owned),
                compression,
                depth: 0,
            }
        };
        for (path, query, expected) in [
            ("hello", None, name("hello", None, None, Compression::None)),
            ("a.narinfo", None, name("a.narinfo", None, None, Compression::None)),
            ("a.doi", None, name("a.doi", None, None, Compression::None)),
            ("a%2Fb", None, name("\"a/b\"", None, None, Compression::None)),
            ("007%20+%25", None, name("\"007 +%\"", None, None, Compression::None)),
            ("a.b%5Edev", None, name("a.b", Some("dev"), None, Compression::None)),
            (
                "a.%22b.c%22^dev",
                Some("system=a-linux&compression=zstd"),
                name("a.\"b.c\"", Some("dev"), Some("a-linux"), Compression::Zstd),
            ),
        ] {
            let found = |prefix: &str| Target::parse(&format!("{prefix}pkgs/{path}"), query);
            let route = Route::Download(Name { depth: 2, ..expected.clone() });
            assert_eq!(found("/get/"), Some(Target { route: route.clone(), cached: false }));
            assert_eq!(found("/cached/get/"), Some(Target { route, cached: true }));
            let route = Route::Attribute(expected);
            assert_eq!(found("/api/v1/catalogue/"), Some(Target { route, cached: false }));
        }
        for (path, query) in [
            ("pkgs", None),
            ("pkgs/", None),
            ("pkgs/a..b", None),
            ("pkgs/\"a", None),
            ("pkgs/a%00", None),
            ("pkgs/^out", None),
            ("pkgs/a^", None),
            ("p.k/a", None),
            ("pkgs/a", Some("sistem=a-linux")),
            ("pkgs/a", Some("compression=xz")),
        ] {
            assert_eq!(Target::parse(&format!("/get/{path}"), query), None, "{path} {query:?}");
        }
    }

    #[test]
    fn a_list_of_attributes_is_looked_through_and_goes_page_by_page() {
        let parse = |query| match Target::parse("/api/v1/catalogue/pkgs/", query)?.route {
            Route::Attributes(_, wanted) => Some(wanted),
            _ => None,
        };
        let wanted = |like: Option<&str>, system: Option<&str>, after: &str, max| Wanted {
            like: like.map(str::to_owned),
            system: system.map(str::to_owned),
            after: after.to_owned(),
            max,
        };
        assert_eq!(parse(None), Some(Ok(wanted(None, None, "", 100))));
        assert_eq!(parse(Some("q=")), Some(Ok(wanted(None, None, "", 100))));
        let all = "q=py%2a&system=a-linux&after=%22a+b%22&limit=1000";
        assert_eq!(parse(Some(all)), Some(Ok(wanted(Some("py*"), Some("a-linux"), "\"a+b\"", 1000))));
        for query in ["limit=0", "limit=1001", "limit=x", "page=2", "q=%ff"] {
            assert!(matches!(parse(Some(query)), Some(Err(_))), "{query}");
        }
    }

    #[test]
    fn an_address_that_nothing_has_is_told_of_what_it_is_like() {
        for (path, word) in [
            ("/0123.narinfo", "/<hash>.narinfo"),
            ("/cached/nar/x", "/nar/<NarHash>.nar.zst"),
            ("/get/x", "/get/<set>/<attribute>"),
            ("/log/x", "/log/<hash>-<name>.drv"),
            ("/api/v2/status", "/api/v1/status"),
            ("/favicon.ico", "/ tells what there is"),
        ] {
            assert!(hint(path).contains(word), "{path}: {}", hint(path));
            assert!(word.ends_with("narinfo") || !hint(path).contains("a narinfo is at"), "{path}");
        }
        assert!(is_for_programs("/cached/api/x") && !is_for_programs("/get/api/x"));
    }

    #[test]
    fn what_is_no_hash_is_no_route() {
        let long = "a".repeat(64 * 1024);
        for name in [
            &HASH[1..],
            &format!("{HASH}a"),
            &HASH.to_uppercase(),
            &HASH.replace('0', "e"),
            &HASH.replace('0', "o"),
            &HASH.replace('0', "t"),
            &HASH.replace('0', "u"),
            "%2e%2e%2f",
            "%00",
            "%252e%252e%252f",
            "..",
            &long,
        ] {
            for path in [
                format!("/{name}.narinfo"),
                format!("/cached/{name}.narinfo"),
                format!("/nar/{name}.nar.zst"),
                format!("/nar/{name}.nar"),
                format!("/log/{name}"),
                format!("/log/{name}-x.drv"),
                format!("/api/v1/paths/{name}"),
            ] {
                assert_eq!(parse(&path), None, "{path}");
            }
        }
        assert_eq!(parse(&format!("/log/{HASH}")), None);
        assert_eq!(parse("/cached/cached/nix-cache-info"), None);
    }
}
