//! Package sets and who asks for what: four of five builds are short and the others have a heavy tail, some
//! packages are asked for much more often than others, closures overlap, and new versions come all the time.

use std::collections::{BTreeMap, BTreeSet};

use ondine::build::forecast::estimate::Kind;

use super::random::Random;

/// Requests of one run.
pub const REQUESTS: usize = 6_000;
/// After so many requests the packages have new versions: nothing of what was built is of use any more.
const BUMP_EVERY: usize = 200;
/// Packages of a set.
const PACKAGES: u32 = 400;
/// Variation of the duration of one package from version to version (the standard deviation of its
/// logarithm).
const NOISE: f64 = 0.25;

/// A derivation: the version of all packages, and the number of the package.
pub type Drv = (u32, u32);

/// A package set: derivation n may need those below n.
pub struct Packages {
    inputs: Vec<Vec<u32>>,
    /// Milliseconds of each version of each package.
    millis: Vec<Vec<u64>>,
}

/// Arrival of each request, in milliseconds, and its derivation.
pub type Trace = Vec<(u64, Drv)>;

/// The random package set and trace of a seed.
pub fn random_trace(seed: u64, load: f64) -> (Packages, Trace) {
    let mut random = Random(seed);
    let packages = Packages::random(&mut random, PACKAGES, REQUESTS.div_ceil(BUMP_EVERY));
    let trace = packages.trace(&mut random, load);
    (packages, trace)
}

impl Packages {
    /// A set whose derivations need these, in one version.
    pub fn new(inputs: Vec<Vec<u32>>, millis: Vec<u64>) -> Self {
        Self::versions(inputs, vec![millis])
    }

    /// A set whose derivations need these, and take so many milliseconds in each version.
    pub fn versions(inputs: Vec<Vec<u32>>, millis: Vec<Vec<u64>>) -> Self {
        Self { inputs, millis }
    }

    /// A random set of so many packages, in so many versions.
    pub fn random(random: &mut Random, packages: u32, versions: usize) -> Self {
        let (mut inputs, mut base) = (Vec::new(), Vec::new());
        for n in 0..packages {
            let wanted = random.below(4).min(u64::from(n));
            // Low numbers are what much depends on.
            let input = |random: &mut Random| (f64::from(n) * random.unit() * random.unit()) as u32;
            let needs: BTreeSet<u32> = (0..wanted).map(|_| input(random).min(n.saturating_sub(1))).collect();
            inputs.push(needs.into_iter().collect());
            base.push(duration(random));
        }
        let version = |random: &mut Random| {
            base.iter().map(|millis| (millis * (NOISE * random.normal()).exp()) as u64 + 1).collect()
        };
        let millis = (0..versions).map(|_| version(random)).collect();
        Self { inputs, millis }
    }

    /// Milliseconds that one derivation takes.
    pub fn millis(&self, (version, package): Drv) -> u64 {
        self.millis[version as usize][package as usize]
    }

    /// Inputs of one derivation.
    pub fn inputs(&self, (version, package): Drv) -> impl Iterator<Item = Drv> {
        self.inputs[package as usize].iter().map(move |input| (version, *input))
    }

    /// Kind of work of each package.
    pub fn kinds(&self) -> Vec<Kind> {
        (0..self.len()).map(|n| Kind::new(&format!("p{n}"), "system", 0)).collect()
    }

    /// Number of packages.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Derivations that `wanted` lacks, each with its lacking inputs.
    pub fn lacking(&self, wanted: Drv, built: &BTreeSet<Drv>) -> BTreeMap<Drv, BTreeSet<Drv>> {
        let (mut needs, mut stack) = (BTreeMap::new(), vec![wanted]);
        while let Some(drv) = stack.pop() {
            if built.contains(&drv) || needs.contains_key(&drv) {
                continue;
            }
            let inputs: BTreeSet<Drv> = self.inputs(drv).filter(|input| !built.contains(input)).collect();
            stack.extend(&inputs);
            needs.insert(drv, inputs);
        }
        needs
    }

    /// As many packages as there are requests in a run, none of which needs another, in one version.
    pub fn random_apart(random: &mut Random, millis_max: u64) -> Self {
        let millis = (0..REQUESTS).map(|_| (duration(random) as u64).min(millis_max)).collect();
        Self::new(vec![Vec::new(); REQUESTS], millis)
    }

    /// One request for each package at a random moment: jobs that share nothing, served one after the other.
    pub fn trace_apart(&self, random: &mut Random, load: f64) -> Trace {
        self.arrivals((0..self.len() as u32).map(|package| (0, package)).collect(), random, load)
    }

    /// Requests at random moments, so many that the builder is busy for about `load` of the time.
    pub fn trace(&self, random: &mut Random, load: f64) -> Trace {
        let wanted = (0..REQUESTS).map(|n| ((n / BUMP_EVERY) as u32, self.popular(random))).collect();
        self.arrivals(wanted, random, load)
    }

    /// A number below that of the packages, the lower the likelier (Zipf).
    pub fn popular(&self, random: &mut Random) -> u32 {
        let count = self.len() as f64;
        ((count.powf(random.unit()) - 1.0) as u32).min(self.len() as u32 - 1)
    }

    fn arrivals(&self, wanted: Vec<Drv>, random: &mut Random, load: f64) -> Trace {
        let gap = self.work_of(wanted.iter().copied()) as f64 / load / wanted.len() as f64;
        let mut now = 0.0;
        let arrivals = wanted.into_iter().map(|drv| {
            now += -gap * random.unit().ln();
            (now as u64, drv)
        });
        arrivals.collect()
    }

    /// Milliseconds to build all of these once.
    pub fn work_of(&self, wanted: impl IntoIterator<Item = Drv>) -> u64 {
        let mut built = BTreeSet::new();
        for drv in wanted {
            built.extend(self.lacking(drv, &built).into_keys());
        }
        built.into_iter().map(|drv| self.millis(drv)).sum()
    }
}

/// Milliseconds: four of five are short, the long ones take up to four hours.
fn duration(random: &mut Random) -> f64 {
    let seconds = if random.below(5) < 4 { 1.0 + 29.0 * random.unit() } else { 30.0 / random.unit() };
    seconds.min(4.0 * 3600.0) * 1000.0
}
