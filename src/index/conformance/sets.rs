//! Promises of every backend about what is known of package sets, and about generations in the making.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use narinfo::StorePath;

use crate::index::Index;
use crate::index::samples::{at, bump, configure, drv, hash, output};
use crate::model::{
    AttributeName, AttributeRow, Failure, FailureClass, GenerationSize, Maker, NewGeneration, OutputRow,
    Search,
};

const LINUX: &str = "a-linux";

/// An attribute that is the derivation of its name.
fn attribute(name: &str, denied: bool) -> AttributeRow {
    AttributeRow {
        attribute: name.into(),
        system: LINUX.into(),
        outcome: Ok(drv(name.trim_matches('"'))),
        output: Some("out".into()),
        program: Some(format!("run-{name}")),
        denied,
    }
}

fn broken(name: &str, why: &str) -> AttributeRow {
    AttributeRow { outcome: Err(why.into()), output: None, program: None, ..attribute(name, false) }
}

fn of_other_system(row: AttributeRow) -> AttributeRow {
    AttributeRow { system: "b-linux".into(), ..row }
}

/// Makes a generation of a set with these attributes, and gives its number.
async fn generation(index: &Index, set: &str, rows: Vec<AttributeRow>) -> u64 {
    index.start_generation().await.expect("started");
    index.add_attributes(rows).await.expect("added");
    swap(index, set, "holder").await
}

async fn swap(index: &Index, set: &str, holder: &str) -> u64 {
    let size = GenerationSize { attributes: 1, denied: 2, errors: 3, derivations: 4 };
    let new = NewGeneration { set: set.into(), made_by: "settings".into(), holder: drv(holder), size };
    index.swap_generation(new).await.expect("swapped").generation
}

fn search() -> Search {
    Search { like: None, after: String::new(), system: LINUX.into(), max: 100 }
}

fn name(set: &str, attribute: &str) -> AttributeName {
    AttributeName { set: set.into(), attribute: attribute.into(), system: LINUX.into() }
}

/// The names of what is listed, and the number of the generation.
async fn listed(index: &Index, search: Search) -> (u64, Vec<String>) {
    let (generation, rows) = index.listed("one".into(), search).await.expect("read").expect("a generation");
    (generation, rows.into_iter().map(|row| row.attribute).collect())
}

pub(super) async fn attributes_are_listed_by_system_name_and_pattern(index: Index) {
    configure(&index).await;
    assert_eq!(index.listed("one".into(), search()).await.expect("read"), None);
    let rows = vec![
        attribute("c_d", false),
        attribute("a", true),
        attribute("\"q.r\"", false),
        broken("b", "why"),
        of_other_system(attribute("z", false)),
    ];
    let number = generation(&index, "one", rows).await;
    let all = ["\"q.r\"", "a", "b", "c_d"].map(str::to_owned);
    assert_eq!(listed(&index, search()).await, (number, all.to_vec()));
    let (_, first) = listed(&index, Search { max: 2, ..search() }).await;
    assert_eq!(first, all[..2]);
    let (_, rest) = listed(&index, Search { after: "a".into(), ..search() }).await;
    assert_eq!(rest, all[2..]);
    let (_, other) = listed(&index, Search { system: "b-linux".into(), ..search() }).await;
    assert_eq!(other, ["z"]);
    for (like, expected) in [
        ("A", &["a"][..]),
        ("q.r", &["\"q.r\""]),
        ("\"q", &["\"q.r\""]),
        ("_", &["c_d"]),
        ("c*", &["c_d"]),
        ("*d", &["c_d"]),
        ("d*", &[]),
        ("*", &["\"q.r\"", "a", "b", "c_d"]),
        ("%", &[]),
        (".drv", &[]),
    ] {
        let (_, found) = listed(&index, Search { like: Some(like.into()), ..search() }).await;
        assert_eq!(found, expected, "{like}");
    }
    let (_, rows) = index.listed("one".into(), search()).await.expect("read").expect("a generation");
    assert_eq!(rows[1..3], [attribute("a", true), broken("b", "why")]);
}

pub(super) async fn a_name_and_a_derivation_are_looked_up_in_current_generations_alone(index: Index) {
    configure(&index).await;
    generation(&index, "one", vec![attribute("gone", false)]).await;
    let rows = vec![attribute("a", false), attribute("no", true), of_other_system(attribute("a", false))];
    generation(&index, "one", rows.clone()).await;
    generation(&index, "two", vec![attribute("a", true), broken("bad", "why")]).await;
    let named = index.attributes("a".into()).await.expect("read");
    let expected: Vec<(String, AttributeRow)> =
        [("one", &rows[0]), ("one", &rows[2])].map(|(set, row)| (set.to_owned(), row.clone())).into();
    assert_eq!(named[..2], expected);
    assert_eq!(named[2..], [("two".to_owned(), attribute("a", true))]);
    let allowed = async |set: &str| index.allowed_derivations(set.into()).await.expect("read");
    assert_eq!((allowed("one").await, allowed("two").await), ([drv("a")].into(), BTreeSet::new()));
    for (set, of, expected) in [("one", "a", true), ("two", "a", true), ("one", "gone", false)] {
        assert_eq!(index.has_derivation(set.into(), drv(of)).await.expect("read"), expected, "{set} {of}");
    }
    let names = index.names_of(vec![drv("no"), drv("gone")]).await.expect("read");
    assert_eq!(names, BTreeMap::from([(drv("no"), name("one", "no"))]));
    let asked = ["a", "no", "gone"].map(|attribute| name("one", attribute)).to_vec();
    let asked = asked.into_iter().chain([name("two", "bad"), name("none", "a"), name("one", "a")]).collect();
    let found = index.derivations_named(asked).await.expect("read");
    assert_eq!(found, [Some(drv("a")), None, None, None, None, Some(drv("a"))]);
}

pub(super) async fn what_failed_is_listed_and_explained_as_long_as_it_is_current(index: Index) {
    configure(&index).await;
    let failed = async |max| index.failed_attributes("one".into(), max).await.expect("read");
    index.start_generation().await.expect("started");
    let rows = vec![attribute("c", false), broken("b", "why b"), broken("a", "why a"), attribute("d", true)];
    index.add_attributes(rows).await.expect("added");
    let turned = vec![(drv("c"), "why c".to_owned()), (drv("x"), "nobody".to_owned())];
    assert_eq!(index.fail_attributes(turned).await.expect("written"), 1);
    let number = swap(&index, "one", "holder").await;
    let expected = [broken("a", "why a"), broken("b", "why b"), broken("c", "why c")];
    assert_eq!(failed(9).await, expected);
    assert_eq!(failed(2).await, expected[..2]);
    let explain = async |generation, attribute: &str| {
        let named = name("one", attribute);
        index.explain_attribute(generation, named, "explained".into()).await.expect("written");
    };
    explain(number, "a").await;
    explain(number + 1, "b").await;
    explain(number, "d").await;
    assert_eq!(failed(2).await, [broken("a", "explained"), broken("b", "why b")]);
    assert_eq!(index.allowed_derivations("one".into()).await.expect("read"), BTreeSet::new());
    assert!(index.has_derivation("one".into(), drv("d")).await.expect("read"));
    generation(&index, "one", vec![broken("a", "why a")]).await;
    explain(number, "a").await;
    assert_eq!(failed(9).await, [broken("a", "why a")]);
}

pub(super) async fn derivations_are_denied_and_allowed_under_all_their_names(index: Index) {
    configure(&index).await;
    index.start_generation().await.expect("started");
    let twin = AttributeRow { attribute: "twin".into(), ..attribute("a", false) };
    let rows =
        vec![attribute("a", false), twin, attribute("b", true), attribute("c", true), broken("e", "w")];
    index.add_attributes(rows).await.expect("added");
    let settled = index.settle_attributes(vec![drv("a"), drv("x")], vec![drv("b")]).await.expect("settled");
    assert_eq!(settled, GenerationSize { attributes: 4, denied: 3, errors: 1, derivations: 0 });
    let untouched = index.settle_attributes(vec![], vec![]).await.expect("settled");
    assert_eq!(untouched, settled);
    swap(&index, "one", "holder").await;
    assert_eq!(index.allowed_derivations("one".into()).await.expect("read"), [drv("b")].into());
}

pub(super) async fn sets_that_are_configured_no_more_go_with_all_they_had(index: Index) {
    configure(&index).await;
    bump(&index, "one", vec![output('a', "a", false)]).await;
    bump(&index, "two", vec![output('b', "b", false)]).await;
    index.start_generation().await.expect("started");
    index.add_outputs(vec![output('c', "c", false)]).await.expect("added");
    index.add_attributes(vec![attribute("half", false)]).await.expect("added");
    index.sync_sets(vec!["two".into(), "three".into()]).await.expect("written");
    assert_eq!(index.makers(hash('a')).await.expect("read"), []);
    assert_eq!(index.attributes("attribute-a.drv".into()).await.expect("read"), []);
    assert!(index.set("one".into()).await.expect("read").generations.is_empty());
    assert_eq!(index.makers(hash('b')).await.expect("read").len(), 1);
    // The generation that was started is dropped.
    swap(&index, "three", "holder").await;
    assert_eq!(index.makers(hash('c')).await.expect("read"), []);
    assert_eq!(index.attributes("half".into()).await.expect("read"), []);
}

pub(super) async fn a_set_tells_its_generations_and_its_latest_refresh(index: Index) {
    configure(&index).await;
    let set = async || index.set("one".into()).await.expect("read");
    assert_eq!((set().await.tried_at, set().await.generations.len()), (None, 0));
    index.record_refresh("one".into(), Some("why".into())).await.expect("recorded");
    let failed = set().await;
    assert!(failed.tried_at.is_some());
    assert_eq!((failed.failure.as_deref(), failed.generations.len()), (Some("why"), 0));
    index.start_generation().await.expect("started");
    let first = swap(&index, "one", "first").await;
    index.start_generation().await.expect("started");
    let second = swap(&index, "one", "second").await;
    let row = set().await;
    assert_eq!(row.failure, None);
    let told: Vec<_> = row.generations.iter().map(|it| (it.id, &it.holder, it.made_by.as_str())).collect();
    assert_eq!(told, [(second, &drv("second"), "settings"), (first, &drv("first"), "settings")]);
    let [current, before] = &row.generations[..] else { panic!("{row:?}") };
    assert!(current.replaced_at.is_none() && before.replaced_at.is_some() && second > first);
    assert_eq!(current.size, GenerationSize { attributes: 1, denied: 2, errors: 3, derivations: 4 });
    let holders = async || BTreeSet::from_iter(index.holders().await.expect("read"));
    assert_eq!(holders().await, [drv("first"), drv("second")].into());
    index.record_refresh("one".into(), None).await.expect("recorded");
    assert_eq!((set().await.failure, set().await.generations.len()), (None, 2));
    index.expire_generations("one".into(), Duration::ZERO).await.expect("expired");
    assert_eq!(holders().await, [drv("second")].into());
}

pub(super) async fn a_swap_forgets_the_failures_of_what_is_there_no_more(index: Index) {
    configure(&index).await;
    bump(&index, "one", vec![output('a', "a", false), output('b', "b", false)]).await;
    for name in ["a", "b", "c"] {
        let failure = Failure {
            drv: drv(name),
            class: FailureClass::Permanent,
            cause: drv(name),
            reason: String::new(),
            failed_at: at(1),
            expires_at: at(100),
        };
        index.remember_failure(failure).await.expect("remembered");
    }
    bump(&index, "one", vec![output('a', "a", false)]).await;
    let known: BTreeSet<StorePath> =
        index.failures(at(9)).await.expect("read").into_iter().map(|failure| failure.drv).collect();
    assert_eq!(known, [drv("a"), drv("c")].into());
}

pub(super) async fn an_output_that_is_allowed_once_is_not_denied_any_more(index: Index) {
    configure(&index).await;
    let both = [vec![output('a', "a", false), output('a', "a", true)], vec![output('b', "b", true)]];
    index.start_generation().await.expect("started");
    for outputs in both {
        index.add_outputs(outputs).await.expect("added");
    }
    swap(&index, "one", "holder").await;
    let maker = |name: &str, denied_by: Option<&str>| Maker {
        drv: drv(name),
        denied_by: denied_by.map(str::to_owned),
    };
    assert_eq!(index.makers(hash('a')).await.expect("read"), [maker("a", None)]);
    assert_eq!(index.makers(hash('b')).await.expect("read"), [maker("b", Some("one"))]);
}

pub(super) async fn an_attribute_that_is_evaluated_later_joins_its_generation_while_that_is_current(
    index: Index,
) {
    configure(&index).await;
    let before = SystemTime::now();
    let first = generation(&index, "one", vec![attribute("a", false)]).await;
    let add = async |generation, row: AttributeRow, outputs: Vec<OutputRow>| {
        index.add_evaluated(generation, row, outputs, drv("later")).await.expect("asked")
    };
    let outputs = vec![output('b', "b", false), output('c', "c", true), output('c', "c", true)];
    assert!(add(first, attribute("b", false), outputs.clone()).await);
    assert!(add(first, broken("bad", "why"), vec![output('c', "c", false)]).await);
    let found = index.attribute("one".into(), "b".into(), LINUX.into()).await.expect("read").expect("there");
    assert_eq!((found.generation, found.row), (first, Some(attribute("b", false))));
    assert_eq!(index.makers(hash('c')).await.expect("read"), [Maker { drv: drv("c"), denied_by: None }]);
    let set = index.set("one".into()).await.expect("read");
    let current = &set.generations[0];
    assert_eq!((&current.holder, current.id), (&drv("later"), first));
    assert_eq!(current.size, GenerationSize { attributes: 2, denied: 2, errors: 4, derivations: 5 });
    assert!(current.made_at <= SystemTime::now() && current.made_at + Duration::from_secs(2) > before);
    let second = generation(&index, "one", vec![attribute("a", false)]).await;
    assert!(!add(first, attribute("d", false), vec![output('d', "d", false)]).await);
    assert!(!add(second + 1, attribute("d", false), vec![output('d', "d", false)]).await);
    assert_eq!(index.makers(hash('d')).await.expect("read"), []);
    assert_eq!(index.attributes("d".into()).await.expect("read"), []);
}

pub(super) async fn the_versions_of_an_attribute_are_those_of_the_generations_that_are_kept(index: Index) {
    configure(&index).await;
    let with = |drv_name: &str| AttributeRow { outcome: Ok(drv(drv_name)), ..attribute("a", false) };
    let versions = async || {
        let found = index.versions(name("one", "a"), 9).await.expect("read");
        for version in &found {
            assert_eq!(version.last.is_some(), version.until.is_some(), "{version:?}");
        }
        let short = found.into_iter().map(|it| (it.drv.name().to_owned(), it.first, it.last));
        short.collect::<Vec<_>>()
    };
    let named = |name: &str, first, last| (format!("{name}.drv"), first, last);
    let one = generation(&index, "one", vec![with("a-1")]).await;
    let same = generation(&index, "one", vec![with("a-1"), attribute("b", false)]).await;
    assert_eq!(versions().await, [named("a-1", one, None)]);
    let two = generation(&index, "one", vec![with("a-2")]).await;
    let gone = generation(&index, "one", vec![broken("a", "why")]).await;
    let again = generation(&index, "one", vec![with("a-1")]).await;
    assert!(two < gone && gone < again);
    let all = [named("a-1", again, None), named("a-2", two, Some(two)), named("a-1", one, Some(same))];
    assert_eq!(versions().await, all);
    assert_eq!(index.versions(name("one", "a"), 1).await.expect("read").len(), 1);
    assert_eq!(index.versions(name("two", "a"), 9).await.expect("read"), []);
    index.expire_generations("one".into(), Duration::ZERO).await.expect("expired");
    assert_eq!(versions().await, all[..1]);
    // What is evaluated later joins.
    let later = AttributeRow { attribute: "later".into(), ..with("later-1") };
    assert!(index.add_evaluated(again, later, Vec::new(), drv("holder")).await.expect("added"));
    let found = index.versions(name("one", "later"), 9).await.expect("read");
    assert_eq!(found.iter().map(|it| (it.first, it.last)).collect::<Vec<_>>(), [(again, None)]);
    index.sync_sets(vec!["two".into()]).await.expect("configured");
    assert_eq!(versions().await, []);
}
