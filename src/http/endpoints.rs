//! The one table of endpoints. The router, the text at `/`, the hints of a 404, the OpenAPI document, the
//! labels of the metrics and the check of the documentation are all made from it. To add an endpoint, write
//! its handler and add its row.

use schemars::SchemaGenerator;

use super::api::{
    AttributeDetails, AttributePage, BuildList, BuilderStatus, BuildsAnswer, BuildsRequest, CheckRequest,
    CollectRequest, DirectoryListing, Explanation, HourOfUse, IssueRequest, IssuedToken, MissingPathsAnswer,
    MissingPathsRequest, PackageSet, PackageSetDetails, PathDetails, PinView, ProgramDetails, QueueStatus,
    RememberedFailure, RequestDetails, RetryRequest, ServerStatus, TokenView, UpstreamStatus, UsageReport,
};
use super::endpoint::{
    ATTRIBUTES_QUERY, Content, Endpoint, PROGRAM_QUERY, RUN_QUERY, SYSTEM, Verb, WAIT_QUERY,
};
use super::traffic::RouteLabel;
use super::{
    builders, builds, by_name, catalogue, derivations, explain, failures, files, history, info, listing,
    live, log, maintenance, nar, narinfo, openapi, page, pins, put, realisation, status, tokens, usage,
    wait_lines,
};
use crate::caller::Action;
use crate::model::DerivationText;

/// All endpoints. The first row that matches a path counts; those that are asked for most stand first.
pub(super) static ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        label: RouteLabel::NarInfo,
        answer: Content::Media("text/x-nix-narinfo"),
        summary: "narinfo of a store path, which is built first where need be; HEAD builds nothing",
        form: Some(
            "a narinfo is at /<hash>.narinfo, where the hash is the first 32 characters of a store path's name, digits and \
             lower-case letters without e, o, t and u",
        ),
        ..Endpoint::cache("/<hash>.narinfo", narinfo::get)
    },
    Endpoint {
        label: RouteLabel::Nar,
        answer: Content::Media("application/zstd"),
        summary: "NAR as a zstd file; with another compression a redirect to the upstream that has it",
        form: Some(
            "a NAR is at /nar/<NarHash>.nar.zst or .nar, where its narinfo says, with 52 characters of NarHash",
        ),
        ..Endpoint::cache("/nar/<NarHash>.nar.<compression>", nar::get)
    },
    Endpoint {
        label: RouteLabel::Nar,
        answer: Content::Media("application/x-nix-nar"),
        summary: "NAR without compression",
        ..Endpoint::cache("/nar/<NarHash>.nar", nar::get)
    },
    Endpoint {
        label: RouteLabel::Page,
        answer: Content::Media("text/x-nix-cache-info"),
        summary: "store directory and priority of this cache",
        ..Endpoint::page("/nix-cache-info", info::cache_info)
    },
    Endpoint {
        label: RouteLabel::Realisation,
        answer: Content::Media("application/json"),
        summary: "signed realisation of an output of a content-addressed derivation; builds nothing",
        question_mark_is_path: true,
        form: Some("a realisation is at /realisations/sha256:<hash>!<output>.doi"),
        ..Endpoint::cache("/realisations/<id>.doi", realisation::get)
    },
    Endpoint {
        label: RouteLabel::Realisation,
        answer: Content::Media("application/json"),
        summary: "the same for Nix 2.35 and later",
        form: Some("a realisation is at /build-trace-v2/<derivation>/<output>.doi"),
        ..Endpoint::cache("/build-trace-v2/<derivation>/<output>.doi", realisation::get)
    },
    Endpoint {
        label: RouteLabel::Log,
        summary: "log of a build; that of a running build is followed to its end",
        question_mark_is_path: true,
        form: Some("a log is at /log/<hash>-<name>.drv, the name of a derivation"),
        ..Endpoint::cache("/log/<derivation>", log::get)
    },
    Endpoint {
        label: RouteLabel::Download,
        answer: Content::Redirect,
        summary: "NAR of a package by name (<attribute>^<output> for another output), or its closure (<attribute>.tar.zst), \
                  built first where need be",
        query: &[SYSTEM, ("compression", "`none`, which is the default, or `zstd`"), WAIT_QUERY],
        form: Some(
            "contents are at /get/<set>/<attribute>, with ^<output>, ?system=<system>, &compression=zstd and \
             &wait=<seconds> where they are wanted; an attribute is written as Nix writes it, percent-encoded",
        ),
        ..Endpoint::page("/get/<set>/<attribute>", by_name::download).taking_slashes()
    },
    Endpoint {
        label: RouteLabel::Download,
        answer: Content::Json(SchemaGenerator::subschema_for::<AttributePage>),
        summary: "attributes of a package set, page by page; for a browser a page with a search",
        query: ATTRIBUTES_QUERY,
        ..Endpoint::page("/get/<set>/", listing::for_people)
    },
    Endpoint::without_slash("/get/<set>", listing::with_slash),
    Endpoint {
        label: RouteLabel::File,
        answer: Content::Media("application/json"),
        summary: "listing of a store path's files, in the format of Nix",
        form: Some("a listing is at /<hash>.ls, with the first 32 characters of a store path's name"),
        ..Endpoint::cache("/<hash>.ls", files::listing)
    },
    Endpoint {
        summary: "executable of this name, of any package set, which is built first where need be",
        query: PROGRAM_QUERY,
        form: Some("a program is at /bin/<program>, or at /bin/<set>/<attribute>/<program>"),
        ..Endpoint::file("application/octet-stream", "/bin/<program>", files::program)
    },
    Endpoint {
        summary: "executable of an attribute, which is built first where need be",
        query: PROGRAM_QUERY,
        ..Endpoint::file("application/octet-stream", "/bin/<set>/<attribute>/<program>", files::program_of)
    },
    Endpoint {
        summary: "store path and all that it refers to, as a tar file to unpack at /",
        form: Some("a closure is at /closure/<hash>.tar.zst, or at /closure/<set>/<attribute>.tar.zst"),
        ..Endpoint::file("application/zstd", "/closure/<hash>.tar.zst", files::tar)
    },
    Endpoint::of_attribute("application/zstd", "/closure/<set>/<attribute>.tar.zst", files::tar),
    Endpoint {
        summary: "the same without compression",
        ..Endpoint::file("application/x-tar", "/closure/<hash>.tar", files::tar)
    },
    Endpoint::of_attribute("application/x-tar", "/closure/<set>/<attribute>.tar", files::tar),
    Endpoint {
        summary: "store path and all that it refers to, as an OCI image",
        form: Some("an image is at /image/<hash>.tar, or at /image/<set>/<attribute>.tar"),
        ..Endpoint::file("application/x-tar", "/image/<hash>.tar", files::image)
    },
    Endpoint::of_attribute("application/x-tar", "/image/<set>/<attribute>.tar", files::image),
    Endpoint {
        summary: "shell script that fetches an attribute and runs a program of it, on machines without Nix",
        query: RUN_QUERY,
        form: Some("a script is at /run/<set>/<attribute>"),
        ..Endpoint::file("text/x-shellscript", "/run/<set>/<attribute>", files::run).taking_slashes()
    },
    Endpoint {
        summary: "store path and all that it refers to, for nix-store --import",
        ..Endpoint::file("application/x-nix-export", "/closure/<hash>.closure", files::export)
    },
    Endpoint::of_attribute("application/x-nix-export", "/closure/<set>/<attribute>.closure", files::export),
    Endpoint {
        label: RouteLabel::File,
        answer: Content::Media("application/json"),
        summary: "NAR and file in it that has the debugging symbols of a build id",
        form: Some("debugging symbols are at /debuginfo/<id>, a build id with 16 or more hexadecimal digits"),
        ..Endpoint::cache("/debuginfo/<id>", files::place)
    },
    Endpoint {
        label: RouteLabel::File,
        answer: Content::Media("application/octet-stream"),
        summary: "debugging symbols of a build id, as debuginfod serves them",
        ..Endpoint::cache("/buildid/<id>/debuginfo", files::symbols)
    },
    Endpoint {
        summary: "one file of a store path; of a directory its entries, as a page or JSON",
        form: Some("a file is at /file/<hash>/<path>, with the first 32 characters of a store path's name"),
        ..Endpoint::file("application/octet-stream", "/file/<hash>/<path>", files::file).taking_slashes()
    },
    Endpoint {
        label: RouteLabel::File,
        answer: Content::Json(SchemaGenerator::subschema_for::<DirectoryListing>),
        summary: "entries of a store path, or the file that it is",
        ..Endpoint::page("/file/<hash>/", files::root)
    },
    Endpoint {
        label: RouteLabel::File,
        answer: Content::Json(SchemaGenerator::subschema_for::<DirectoryListing>),
        summary: "the same",
        ..Endpoint::page("/file/<hash>", files::root)
    },
    Endpoint {
        label: RouteLabel::Page,
        summary: "this text, or for a browser the first page",
        open: true,
        ..Endpoint::page("/", page::home)
    },
    Endpoint {
        label: RouteLabel::Monitoring,
        summary: "200 while the process lives",
        open: true,
        ..Endpoint::page("/healthz", info::health)
    },
    Endpoint {
        label: RouteLabel::Monitoring,
        summary: "200 while the server can do all of its work, else 503 with the reason",
        open: true,
        ..Endpoint::page("/readyz", info::readiness)
    },
    Endpoint {
        label: RouteLabel::Monitoring,
        answer: Content::Media("application/openmetrics-text"),
        summary: "metrics for Prometheus",
        ..Endpoint::page("/metrics", status::metrics)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<ServerStatus>),
        summary: "version, address, keys, contents of the cache, the queue, package sets and upstreams",
        ..Endpoint::api(Verb::Get, "/api/v1/status", Action::Read, status::server)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<QueueStatus>),
        summary: "builds that run, and requests that wait, oldest first",
        ..Endpoint::api(Verb::Get, "/api/v1/queue", Action::Read, status::queue)
    },
    Endpoint {
        answer: Content::Media("text/event-stream"),
        summary: "server-sent events of the queue and of the logs of builds that run",
        query: &[("derivation", "base name of the one derivation whose log is wanted")],
        is_page: true,
        ..Endpoint::api(Verb::Get, "/api/v1/events", Action::Read, live::get)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<UpstreamStatus>>),
        summary: "upstreams: their use, health and counts",
        ..Endpoint::api(Verb::Get, "/api/v1/upstreams", Action::Read, status::upstreams)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<UsageReport>),
        summary: "disk space of NARs by package set and by closure",
        query: &[("limit", "closures in the answer, 1 to 1000; default: 20")],
        ..Endpoint::api(Verb::Get, "/api/v1/usage", Action::Admin, usage::get)
    },
    Endpoint {
        answer: Content::Media("text/x-nix-narinfo"),
        summary: "lines like those about a wait, one by one within two seconds: a test of the proxies between",
        ..Endpoint::api(Verb::Get, "/api/v1/wait-lines", Action::Read, wait_lines::get)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<BuilderStatus>>),
        summary: "machines that build: their state, what runs there, and why one was lost",
        ..Endpoint::api(Verb::Get, "/api/v1/builders", Action::Read, builders::list)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<RequestDetails>),
        summary: "one request for a build, and the end of its log; as server-sent events where the client accepts them",
        query: &[("wait", "seconds, at most 300: answers when the request has ended, or after that time")],
        ..Endpoint::api(Verb::Get, "/api/v1/builds/<number>", Action::Read, builds::get)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Explanation>),
        summary: "where a hash, store path, derivation or attribute is, or why it is not, and what to do",
        ..Endpoint::api(Verb::Get, "/api/v1/explain/<what>", Action::Read, explain::get).taking_slashes()
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<BuildList>),
        summary: "requests for builds that wait, and the latest that have ended",
        ..Endpoint::api(Verb::Get, "/api/v1/builds", Action::Read, builds::list)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<BuildsAnswer>),
        summary: "state of many derivations, hashes and attributes at once; those that can be built are started",
        body: Some(SchemaGenerator::subschema_for::<BuildsRequest>),
        ..Endpoint::api(Verb::Post, "/api/v1/builds", Action::Build, builds::ask)
    },
    Endpoint {
        summary: "cancels a request for a build; it goes on where others wait for it",
        ..Endpoint::change(Verb::Delete, "/api/v1/builds/<number>", Action::Cancel, builds::cancel)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<PathDetails>),
        summary: "a store path that is served",
        ..Endpoint::api(Verb::Get, "/api/v1/paths/<hash>", Action::Read, status::path)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<PackageSet>>),
        summary: "the package sets and their generations",
        ..Endpoint::api(Verb::Get, "/api/v1/catalogue", Action::Read, catalogue::all)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<PackageSetDetails>),
        summary: "one package set, and the attributes that failed to evaluate",
        ..Endpoint::api(Verb::Get, "/api/v1/catalogue/<set>", Action::Read, catalogue::one)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<AttributePage>),
        summary: "attributes of a package set, page by page",
        query: ATTRIBUTES_QUERY,
        ..Endpoint::api(Verb::Get, "/api/v1/catalogue/<set>/", Action::Read, listing::get)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<AttributeDetails>),
        summary: "one attribute: its derivation, its outputs and where they are",
        query: &[("system", "system of the attribute; default: the first one of the set")],
        ..Endpoint::api(Verb::Get, "/api/v1/catalogue/<set>/<attribute>", Action::Read, by_name::describe)
            .taking_slashes()
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<ProgramDetails>),
        summary: "packages that have a program of this name",
        query: &[("system", "system of the packages; default: the first one of each set")],
        ..Endpoint::api(Verb::Get, "/api/v1/programs/<program>", Action::Read, files::owners)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<RememberedFailure>>),
        summary: "failures that are remembered",
        ..Endpoint::api(Verb::Get, "/api/v1/failures", Action::Read, failures::list)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<HourOfUse>>),
        summary: "use of the server, hour by hour",
        query: &[("hours", "number of hours, 1 to 2160; default: 168")],
        ..Endpoint::api(Verb::Get, "/api/v1/history", Action::Read, history::get)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<PinView>>),
        summary: "pins",
        ..Endpoint::api(Verb::Get, "/api/v1/pins", Action::Read, pins::list)
    },
    Endpoint {
        answer: Content::Media("application/json"),
        summary: "OpenAPI document of all these addresses",
        ..Endpoint::api(Verb::Get, "/api/v1/openapi.json", Action::Read, openapi::get)
    },
    Endpoint {
        summary: "page: search for packages, paths and derivations",
        query: &[("q", "the text")],
        ..Endpoint::html(Verb::Get, "/search", Action::Read, page::search)
    },
    Endpoint {
        summary: "page: the package sets",
        ..Endpoint::html(Verb::Get, "/packages", Action::Read, page::packages)
    },
    Endpoint {
        summary: "page: the attributes of a package set",
        query: &[
            ("q", "a part of a name, or a pattern with `*`"),
            ("system", "system of the attributes"),
            ("after", "the attribute after which the list begins"),
            ("limit", "attributes in a page"),
        ],
        ..Endpoint::html(Verb::Get, "/packages/<set>/", Action::Read, page::set)
    },
    Endpoint {
        summary: "page: one package",
        query: &[("system", "system of the package")],
        ..Endpoint::html(Verb::Get, "/packages/<set>/<attribute>", Action::Read, page::attribute)
            .taking_slashes()
    },
    Endpoint {
        summary: "page: a derivation with its inputs, outputs, failure and log",
        query: &[
            ("find", "text of the lines of the log that are wanted"),
            ("from", "number of the first line that is wanted"),
        ],
        ..Endpoint::html(Verb::Get, "/derivations/<derivation>", Action::Read, page::derivation)
    },
    Endpoint {
        summary: "page: a store path with its closure, references both ways, and why it is kept",
        query: &[("at", "hash of the path of the closure that is drawn")],
        ..Endpoint::html(Verb::Get, "/paths/<hash>", Action::Read, page::path)
    },
    Endpoint {
        summary: "page: requests, sizes, builds and pre-building in numbers",
        ..Endpoint::html(Verb::Get, "/statistics", Action::Read, page::statistics)
    },
    Endpoint {
        summary: "page: all endpoints",
        ..Endpoint::html(Verb::Get, "/reference", Action::Read, page::reference)
    },
    Endpoint {
        summary: "page: failures that are remembered, and what they block",
        ..Endpoint::html(Verb::Get, "/failures", Action::Read, page::failures)
    },
    Endpoint {
        label: RouteLabel::Change,
        summary: "form: takes back a remembered failure, and has it built again",
        ..Endpoint::html(Verb::Post, "/failures/<derivation>/retry", Action::Cancel, page::retry)
    },
    Endpoint {
        summary: "page: the form to sign in with a token",
        open: true,
        query: &[("back", "the page to return to")],
        ..Endpoint::html(Verb::Get, "/sign-in", Action::Read, page::sign_in_form)
    },
    Endpoint {
        summary: "form: has the browser keep a token",
        open: true,
        ..Endpoint::html(Verb::Post, "/sign-in", Action::Read, page::sign_in)
    },
    Endpoint {
        summary: "form: has the browser forget the token",
        open: true,
        ..Endpoint::html(Verb::Post, "/sign-out", Action::Read, page::sign_out)
    },
    Endpoint {
        summary: "form: has the browser keep a theme",
        open: true,
        ..Endpoint::html(Verb::Post, "/theme", Action::Read, page::theme)
    },
    Endpoint {
        answer: Content::Media("text/css"),
        summary: "style, script and icon of the pages",
        open: true,
        ..Endpoint::html(Verb::Get, "/assets/<file>", Action::Read, page::asset)
    },
    Endpoint {
        summary: "NAR whose name is the hash of its file",
        ..Endpoint::upload("/nar/<hash>.nar.<compression>", put::nar)
    },
    Endpoint { summary: "the same without compression", ..Endpoint::upload("/nar/<hash>.nar", put::nar) },
    Endpoint {
        summary: "narinfo of a NAR that was uploaded before: the path is verified and served",
        ..Endpoint::upload("/<hash>.narinfo", put::narinfo)
    },
    Endpoint {
        summary: "log of a build",
        question_mark_is_path: true,
        ..Endpoint::upload("/log/<derivation>", put::log)
    },
    Endpoint {
        summary: "realisation of an output whose path is served",
        question_mark_is_path: true,
        ..Endpoint::upload("/realisations/<id>.doi", put::realisation)
    },
    Endpoint {
        summary: "the same for Nix 2.35 and later",
        ..Endpoint::upload("/build-trace-v2/<derivation>/<output>.doi", put::realisation)
    },
    Endpoint {
        summary: "listing of a NAR; accepted, and not kept",
        ..Endpoint::upload("/<hash>.ls", put::listing)
    },
    Endpoint {
        summary: "place of debugging symbols in a NAR that is uploaded next",
        ..Endpoint::upload("/debuginfo/<id>", put::debug_info)
    },
    Endpoint {
        summary: "accepted where it names the same store directory, and not kept",
        ..Endpoint::upload("/nix-cache-info", put::cache_info)
    },
    Endpoint {
        answer: Content::Json(SchemaGenerator::subschema_for::<MissingPathsAnswer>),
        summary: "those of some store paths that are not served and would have to be uploaded",
        body: Some(SchemaGenerator::subschema_for::<MissingPathsRequest>),
        ..Endpoint::api(Verb::Post, "/api/v1/missing", Action::Push, put::missing)
    },
    Endpoint {
        summary: "refreshes all package sets",
        ..Endpoint::change(Verb::Post, "/api/v1/catalogue", Action::Refresh, catalogue::refresh_all)
    },
    Endpoint {
        summary: "refreshes one package set",
        ..Endpoint::change(Verb::Post, "/api/v1/catalogue/<set>", Action::Refresh, catalogue::refresh)
    },
    Endpoint {
        summary: "takes back a remembered failure, and has it built again",
        body: Some(SchemaGenerator::subschema_for::<RetryRequest>),
        ..Endpoint::change(Verb::Post, "/api/v1/failures/<what>/retry", Action::Cancel, failures::retry)
            .taking_slashes()
    },
    Endpoint {
        summary: "pins a store path, or the outputs of an attribute",
        ..Endpoint::change(Verb::Post, "/api/v1/pins/<what>", Action::Pin, pins::pin).taking_slashes()
    },
    Endpoint {
        summary: "unpins",
        ..Endpoint::change(Verb::Delete, "/api/v1/pins/<what>", Action::Pin, pins::unpin).taking_slashes()
    },
    Endpoint {
        summary: "evicts NARs above the limit",
        body: Some(SchemaGenerator::subschema_for::<CollectRequest>),
        ..Endpoint::change(Verb::Post, "/api/v1/gc", Action::Admin, maintenance::collect)
    },
    Endpoint {
        summary: "checks the index against the files of the NAR store",
        body: Some(SchemaGenerator::subschema_for::<CheckRequest>),
        ..Endpoint::change(Verb::Post, "/api/v1/fsck", Action::Admin, maintenance::check)
    },
    Endpoint {
        summary: "takes a derivation that is not known, with the paths that it is built from, to be asked for then",
        body: Some(SchemaGenerator::subschema_for::<DerivationText>),
        ..Endpoint::change(Verb::Post, "/api/v1/derivations", Action::Vouch, derivations::take)
    },
    Endpoint {
        summary: "has nothing more built on a machine (drain), or uses it again (resume)",
        ..Endpoint::change(Verb::Post, "/api/v1/builders/<name>/<change>", Action::Admin, builders::change)
    },
    Endpoint {
        label: RouteLabel::Change,
        answer: Content::Json(SchemaGenerator::subschema_for::<Vec<TokenView>>),
        summary: "tokens, without their secrets",
        ..Endpoint::api(Verb::Get, "/api/v1/tokens", Action::Admin, tokens::list)
    },
    Endpoint {
        label: RouteLabel::Change,
        answer: Content::Json(SchemaGenerator::subschema_for::<IssuedToken>),
        summary: "makes a token, and shows it this one time",
        body: Some(SchemaGenerator::subschema_for::<IssueRequest>),
        ..Endpoint::api(Verb::Post, "/api/v1/tokens", Action::Admin, tokens::issue)
    },
    Endpoint {
        summary: "revokes the token of a name or number",
        ..Endpoint::change(Verb::Delete, "/api/v1/tokens/<name>", Action::Admin, tokens::revoke)
    },
];
