//! Closures of store paths, as the Nix of this machine describes them.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::{PathInfo, StoreDir, StorePath};
use serde_json::Value;

use super::programs::{Messages, ProgramError, output};
use crate::reference_order::after_references;

/// Store paths with all that they refer to: each after its references.
#[derive(Clone, Debug, Default)]
pub struct LocalClosure(Vec<PathInfo>);

impl LocalClosure {
    /// The closure of these paths. With `derivation`, of the derivations that make them.
    ///
    /// # Errors
    /// One is not valid, or the answer of Nix is not understood.
    pub async fn of(store_dir: &StoreDir, roots: &[String], derivation: bool) -> Result<Self, ProgramError> {
        let mut infos = BTreeMap::new();
        // A .drv file stands for itself only with the option, in older releases.
        let (drvs, others): (Vec<&String>, Vec<&String>) =
            roots.iter().partition(|root| root.ends_with(".drv"));
        for (paths, derivation) in [(drvs, true), (others, derivation)] {
            if paths.is_empty() {
                continue;
            }
            let mut words = vec!["path-info", "--json", "--recursive"];
            words.extend(derivation.then_some("--derivation"));
            words.extend(paths.into_iter().map(String::as_str));
            let text = output("nix", words, Messages::Kept).await?;
            let form =
                |reason: String| ProgramError::Form { command: "nix path-info --json".to_owned(), reason };
            let json: Value = narinfo::json::from_str(&text).map_err(|error| form(error.to_string()))?;
            for info in parse(store_dir, &json).map_err(form)? {
                infos.insert(info.path.clone(), info);
            }
        }
        Ok(Self(in_order(infos)))
    }

    /// The paths, each after its references.
    #[must_use]
    pub fn paths(&self) -> &[PathInfo] {
        &self.0
    }

    /// The paths that are among these, each after its references.
    #[must_use]
    pub fn into_those(self, wanted: &BTreeSet<StorePath>) -> Vec<PathInfo> {
        self.0.into_iter().filter(|info| wanted.contains(&info.path)).collect()
    }
}

/// Descriptions in the form of any release: a list with paths, or an object by path.
fn parse(store_dir: &StoreDir, json: &Value) -> Result<Vec<PathInfo>, String> {
    let described: Vec<(&str, &Value)> = match json {
        Value::Array(list) => {
            list.iter().map(|info| (info["path"].as_str().unwrap_or_default(), info)).collect()
        }
        Value::Object(object) => object.iter().map(|(path, info)| (path.as_str(), info)).collect(),
        _ => return Err("it is neither a list nor an object".to_owned()),
    };
    described.into_iter().map(|(path, info)| path_info(store_dir, path, info)).collect()
}

fn path_info(store_dir: &StoreDir, path: &str, info: &Value) -> Result<PathInfo, String> {
    let named = |path: &str| {
        // The newest form has base names.
        StorePath::parse_either(store_dir, path).map_err(|error| format!("{path}: {error}"))
    };
    let lacks = |field: &str| format!("{path} has no {field}: is it valid in the local store?");
    let texts = |field: &str| {
        let list = info[field].as_array().into_iter().flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let nar_hash = info["narHash"].as_str().ok_or_else(|| lacks("narHash"))?;
    let deriver = info["deriver"].as_str().filter(|deriver| !deriver.is_empty());
    Ok(PathInfo {
        path: named(path)?,
        nar_hash: nar_hash.parse().map_err(|error| format!("{path}: narHash: {error}"))?,
        nar_size: info["narSize"].as_u64().ok_or_else(|| lacks("narSize"))?,
        references: texts("references").iter().map(|reference| named(reference)).collect::<Result<_, _>>()?,
        deriver: deriver.map(named).transpose()?,
        ca: info["ca"].as_str().filter(|ca| !ca.is_empty()).and_then(|ca| ca.parse().ok()),
        signatures: texts("signatures").iter().filter_map(|signature| signature.parse().ok()).collect(),
    })
}

/// The paths, each after its references.
pub(super) fn in_order(infos: BTreeMap<StorePath, PathInfo>) -> Vec<PathInfo> {
    after_references(infos, |info| &info.references)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASHES: [&str; 3] = [
        "0a3yapyfvrv4c8kxsdkx8fgdjssnqz3q",
        "1b3yapyfvrv4c8kxsdkx8fgdjssnqz3q",
        "2c3yapyfvrv4c8kxsdkx8fgdjssnqz3q",
    ];

    fn info(path: usize, references: &[usize]) -> Value {
        let name = |number: &usize| format!("/nix/store/{}-n{number}", HASHES[*number]);
        serde_json::json!({
            "path": name(&path),
            "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "narSize": 112,
            "references": references.iter().map(name).collect::<Vec<_>>(),
        })
    }

    #[test]
    fn a_closure_is_read_in_either_form_and_ordered_by_references() {
        let list = Value::Array(vec![info(0, &[1, 0]), info(1, &[2]), info(2, &[])]);
        let by_path = list.as_array().into_iter().flatten();
        let by_path =
            by_path.map(|info| (info["path"].as_str().unwrap_or_default().to_owned(), info.clone()));
        for json in [list.clone(), Value::Object(by_path.collect())] {
            let infos = parse(&StoreDir::default(), &json).expect("a closure");
            let infos = infos.into_iter().map(|info| (info.path.clone(), info)).collect();
            let ordered: Vec<String> =
                in_order(infos).iter().map(|info| info.path.name().to_owned()).collect();
            assert_eq!(ordered, ["n2", "n1", "n0"]);
        }
        let circle = Value::Array(vec![info(0, &[1]), info(1, &[0, 2]), info(2, &[1])]);
        let infos = parse(&StoreDir::default(), &circle).expect("a closure");
        let ordered = in_order(infos.into_iter().map(|info| (info.path.clone(), info)).collect());
        assert_eq!(ordered.len(), 3, "{ordered:?}");
        let missing = serde_json::json!({ (format!("/nix/store/{}-n", HASHES[0])): null });
        assert!(parse(&StoreDir::default(), &missing).is_err_and(|reason| reason.contains("valid")));
    }
}
