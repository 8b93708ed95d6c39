//! "Did you mean": the known name that is most like one that nothing has.

/// Likeness at least, from 0 to 1, of a name that is suggested where most names are unlike each other.
const LIKENESS_MIN: f64 = 0.78;

/// The most similar of the known names.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let likeness = |known: &&str| strsim::jaro_winkler(name, known);
    known.max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
}

/// The most similar of very many names, if it is similar at all.
pub fn similar<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    nearest(name, known).filter(|found| strsim::jaro_winkler(name, found) >= LIKENESS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_an_unlike_one_is_not_suggested() {
        let known = || ["hello", "jq", "ripgrep"].into_iter();
        assert!(nearest("zzz", known()).is_some());
        assert_eq!(similar("helo", known()), Some("hello"));
        assert_eq!(similar("rigrep", known()), Some("ripgrep"));
        assert_eq!(similar("zzz", known()), None);
        assert_eq!(similar("x", std::iter::empty()), None);
    }
}
