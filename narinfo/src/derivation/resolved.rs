//! Resolved derivations: those that name the paths which they are made from, and no derivations that make
//! these. Nix sends them to remote builders (`BuildDerivation` of the worker protocol).

use std::collections::{BTreeMap, BTreeSet};

use crate::store_path::{StoreDir, StorePath};

/// A derivation that needs no other one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedDerivation {
    /// Its outputs by name.
    pub outputs: BTreeMap<String, ResolvedOutput>,
    /// The paths that it is made from.
    pub inputs: BTreeSet<StorePath>,
    /// The system that builds it, such as `x86_64-linux`.
    pub system: String,
    /// The program that is run.
    pub builder: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its variables.
    pub environment: BTreeMap<String, String>,
}

/// An output of it, as a `.drv` file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedOutput {
    /// Its path, where that is known before the build.
    pub path: Option<StorePath>,
    /// Kind of its contents and of the hash that names them, such as `r:sha256`; empty for an output that is
    /// named by the derivation.
    pub method: String,
    /// That hash in base 16; empty where only the build tells it.
    pub hash: String,
}

impl ResolvedDerivation {
    /// True where the hashes of all outputs are known before the build: their paths are named by these, and
    /// not by what makes them.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        !self.outputs.is_empty() && self.outputs.values().all(|output| !output.hash.is_empty())
    }

    /// The paths of all outputs by name; `None` where the build tells one of them.
    #[must_use]
    pub fn output_paths(&self) -> Option<BTreeMap<String, StorePath>> {
        let known = |(name, output): (&String, &ResolvedOutput)| Some((name.clone(), output.path.clone()?));
        self.outputs.iter().map(known).collect()
    }

    /// The text of its `.drv` file.
    #[must_use]
    pub fn to_aterm(&self, store_dir: &StoreDir) -> String {
        let path = |path: &StorePath| path.in_dir(store_dir);
        let outputs = self.outputs.iter().map(|(name, output)| {
            let known = output.path.as_ref().map(path).unwrap_or_default();
            format!(
                "({},{},{},{})",
                quoted(name),
                quoted(&known),
                quoted(&output.method),
                quoted(&output.hash)
            )
        });
        // By their text, which has another order than the hashes in it.
        let inputs: BTreeSet<String> = self.inputs.iter().map(path).collect();
        let variables =
            self.environment.iter().map(|(name, value)| format!("({},{})", quoted(name), quoted(value)));
        format!(
            "Derive([{}],[],[{}],{},{},[{}],[{}])",
            listed(outputs),
            listed(inputs.iter().map(|input| quoted(input))),
            quoted(&self.system),
            quoted(&self.builder),
            listed(self.arguments.iter().map(|argument| quoted(argument))),
            listed(variables)
        )
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",")
}

/// A text as ATerm has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_a_parser_which_knows_nothing_of_it() {
        let store_dir = StoreDir::default();
        let path = |start: char, name: &str| {
            StorePath::parse(&format!("{}-{name}", start.to_string().repeat(32))).expect("a path")
        };
        let fixed = ResolvedOutput {
            // Another one than that which the hash gives.
            path: Some(path('c', "x")),
            method: "r:sha256".to_owned(),
            hash: "0123456789abcdef".repeat(4),
        };
        let named = ResolvedOutput { path: Some(path('a', "x-dev")), ..ResolvedOutput::default() };
        let environment = [("out", "/nix/store/x"), ("text", "a \"quoted\" \\ line\n\tand\r")];
        let resolved = ResolvedDerivation {
            outputs: [("dev".to_owned(), named.clone())].into(),
            inputs: [path('b', "b"), path('0', "a"), path('z', "c")].into(),
            system: "x86_64-linux".to_owned(),
            builder: "/bin/sh".to_owned(),
            arguments: vec!["-c".to_owned(), "echo \"$text\"\n".to_owned()],
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        assert_eq!(resolved.output_paths(), Some([("dev".to_owned(), path('a', "x-dev"))].into()));
        assert!(!resolved.is_fixed());
        let text = resolved.to_aterm(&store_dir);
        let parsed = nix_derivation::Derivation::from_aterm_bytes(text.as_bytes(), "x").expect("ATerm");
        assert_eq!(String::from_utf8(parsed.to_aterm_bytes()).expect("text"), text);

        let resolved = ResolvedDerivation { outputs: [("out".to_owned(), fixed)].into(), ..resolved };
        assert!(resolved.is_fixed());
        let text = resolved.to_aterm(&store_dir);
        let parsed = nix_derivation::Derivation::from_aterm_bytes(text.as_bytes(), "x").expect("ATerm");
        let output = parsed.outputs()["out"].path("x", "out").expect("known").expect("fixed");
        let known = StorePath::from_inner(&output).expect("a path");
        let mut complete = resolved;
        complete.outputs.get_mut("out").expect("it is there").path = Some(known);
        let text = complete.to_aterm(&store_dir);
        assert_eq!(String::from_utf8(parsed.to_aterm_bytes()).expect("text"), text);
    }
}
