//! Package sets and who asks for what: four of five builds are short and the others have a heavy tail, some packages are
//! asked for much more often than others, closures overlap, and new versions come all the time.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;

/// Requests of one run.
pub const REQUESTS: usize = 6_000;
/// After so many requests the packages have new versions: nothing of what was built is of use any more.
const BUMP_EVERY: usize = 200;
/// Packages of a set.
const PACKAGES: u32 = 400;
/// How much the duration of one package varies from version to version (the standard deviation of its logarithm).
const NOISE: f64 = 0.25;

/// A derivation: the version of all packages, and the number of the package.
pub type Drv = (u32, u32);

/// A package set: derivation n may need those below n.
pub struct Packages {
    inputs: Vec<Vec<u32>>,
    /// Milliseconds of each version of each package.
    millis: Vec<Vec<u64>>,
}

/// When each request arrives, in milliseconds, and for which derivation.
pub type Trace = Vec<(u64, Drv)>;

impl Packages {
    /// A set whose derivations need these, in one version.
    pub fn new(inputs: Vec<Vec<u32>>, millis: Vec<u64>) -> Self {
        Self { inputs, millis: vec![millis] }
    }

    /// A random set.
    pub fn random(random: &mut Random) -> Self {
        let (mut inputs, mut base) = (Vec::new(), Vec::new());
        for n in 0..PACKAGES {
            let wanted = random.below(4).min(u64::from(n));
            // Low numbers are what much depends on.
            let input = |random: &mut Random| (f64::from(n) * random.unit() * random.unit()) as u32;
            let needs: BTreeSet<u32> = (0..wanted).map(|_| input(random).min(n.saturating_sub(1))).collect();
            inputs.push(needs.into_iter().collect());
            // The long ones take up to four hours.
            let seconds = if random.below(5) < 4 { 1.0 + 29.0 * random.unit() } else { 30.0 / random.unit() };
            base.push(seconds.min(4.0 * 3600.0) * 1000.0);
        }
        let version = |random: &mut Random| {
            base.iter().map(|millis| (millis * (NOISE * random.normal()).exp()) as u64 + 1).collect()
        };
        let millis = (0..REQUESTS.div_ceil(BUMP_EVERY)).map(|_| version(random)).collect();
        Self { inputs, millis }
    }

    /// Milliseconds that one derivation takes.
    pub fn millis(&self, (version, package): Drv) -> u64 {
        self.millis[version as usize][package as usize]
    }

    /// How many packages there are.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// What `wanted` lacks, each with its lacking inputs.
    pub fn lacking(&self, wanted: Drv, built: &BTreeSet<Drv>) -> BTreeMap<Drv, BTreeSet<Drv>> {
        let (version, mut needs, mut stack) = (wanted.0, BTreeMap::new(), vec![wanted]);
        while let Some(drv) = stack.pop() {
            if built.contains(&drv) || needs.contains_key(&drv) {
                continue;
            }
            let inputs = self.inputs[drv.1 as usize].iter().map(|input| (version, *input));
            let inputs: BTreeSet<Drv> = inputs.filter(|input| !built.contains(input)).collect();
            stack.extend(&inputs);
            needs.insert(drv, inputs);
        }
        needs
    }

    /// Requests at random moments, so many that the builder is busy for about `load` of the time.
    pub fn trace(&self, random: &mut Random, load: f64) -> Trace {
        let count = self.len() as f64;
        let popular =
            |random: &mut Random| ((count.powf(random.unit()) - 1.0) as u32).min(self.len() as u32 - 1);
        let wanted: Vec<Drv> = (0..REQUESTS).map(|n| ((n / BUMP_EVERY) as u32, popular(random))).collect();
        let gap = self.work_of(&wanted) as f64 / load / REQUESTS as f64;
        let mut now = 0.0;
        let arrivals = wanted.into_iter().map(|drv| {
            now += -gap * random.unit().ln();
            (now as u64, drv)
        });
        arrivals.collect()
    }

    /// Milliseconds to build all of these once.
    pub fn work_of(&self, wanted: &[Drv]) -> u64 {
        let mut built = BTreeSet::new();
        for drv in wanted {
            built.extend(self.lacking(*drv, &built).into_keys());
        }
        built.into_iter().map(|drv| self.millis(drv)).sum()
    }
}
