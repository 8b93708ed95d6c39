//! Buckets of several services for one test that is the same on all of them.

/// A bucket, and what a test does to it beside the server. Keys are below its prefix, and named without it.
pub trait TestBucket {
    /// Address of the service.
    fn address(&self) -> String;

    /// The bucket through a proxy at `address`, as a setting has it.
    fn url_through(&self, address: &str) -> String;

    /// The bucket with a prefix, as a setting has it.
    fn url(&self) -> String {
        self.url_through(&self.address())
    }

    /// A file of credentials, as a setting names it.
    fn credentials(&self) -> String;

    /// The secret in it, which is to show nowhere.
    fn secret(&self) -> String;

    /// Keys of all objects, in order.
    fn keys(&self) -> Vec<String>;

    /// Keys of the NARs, in order.
    fn nars(&self) -> Vec<String> {
        self.keys().into_iter().filter(|key| key.starts_with("nar/")).collect()
    }

    /// The bytes of an object.
    fn get(&self, key: &str) -> Vec<u8>;

    /// Puts an object, in the place of what is there.
    fn put(&self, key: &str, bytes: &[u8]);

    /// Number of uploads that were begun in parts and are neither complete nor aborted.
    fn uploads(&self) -> usize;
}
