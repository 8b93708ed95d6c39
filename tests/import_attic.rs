//! `ondine import` of an attic server: a database and chunks, made here as attic's migrations and its local
//! storage make them, of paths that real Nix has built. What they hold is served to a real client.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::import::{MadeCache, empty_server, import, made, served};
use crate::support::addresses::{base_name, field, fields};
use crate::support::process::Finished;
use crate::support::{Client, Ondine, Release, text};
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

/// The tables as they are after the migrations up to June 2026.
const TABLES: &str = r#"
CREATE TABLE cache (id integer PRIMARY KEY AUTOINCREMENT, name text NOT NULL UNIQUE, keypair text NOT NULL,
    is_public boolean NOT NULL, store_dir text NOT NULL, priority integer NOT NULL,
    upstream_cache_key_names text NOT NULL, created_at text NOT NULL, deleted_at text, retention_period integer);
CREATE TABLE nar (id integer PRIMARY KEY AUTOINCREMENT, state char(1) NOT NULL, nar_hash text NOT NULL,
    nar_size bigint NOT NULL, compression text NOT NULL, num_chunks integer NOT NULL DEFAULT 1,
    holders_count integer NOT NULL DEFAULT 0, created_at text NOT NULL);
CREATE TABLE object (id integer PRIMARY KEY AUTOINCREMENT,
    cache_id bigint NOT NULL REFERENCES cache (id) ON DELETE CASCADE,
    nar_id bigint NOT NULL REFERENCES nar (id) ON DELETE CASCADE, store_path_hash text NOT NULL,
    store_path text NOT NULL, "references" text NOT NULL, system text, deriver text, sigs text NOT NULL, ca text,
    created_at text NOT NULL, last_accessed_at text, created_by text);
CREATE UNIQUE INDEX "idx-object-cache-hash" ON object (cache_id, store_path_hash);
CREATE TABLE chunk (id integer PRIMARY KEY AUTOINCREMENT, state char(1) NOT NULL, chunk_hash text NOT NULL,
    chunk_size bigint NOT NULL, file_hash text, file_size bigint, compression text NOT NULL,
    remote_file text NOT NULL, remote_file_id text NOT NULL UNIQUE, holders_count integer NOT NULL DEFAULT 0,
    created_at text NOT NULL);
CREATE TABLE chunkref (id integer PRIMARY KEY AUTOINCREMENT,
    nar_id bigint NOT NULL REFERENCES nar (id) ON DELETE CASCADE, seq integer NOT NULL,
    chunk_id bigint REFERENCES chunk (id) ON DELETE SET NULL);
CREATE INDEX "idx-chunk-nar-id" ON chunkref (nar_id);
"#;
/// Time of every row, as attic writes it.
const MOMENT: &str = "2026-06-30T00:00:00+00:00";
/// Chunks of each NAR.
const CHUNKS: usize = 3;

/// The directory of an attic server: `server.db`, and chunks in `storage`.
struct AtticServer {
    dir: PathBuf,
    database: Connection,
}

impl AtticServer {
    /// One with the paths of a cache that real Nix has made, in a cache with the key of that one.
    fn of(made: &MadeCache, compression: &str) -> AtticServer {
        let dir = made.store.folder().join(format!("attic-{compression}"));
        fs::create_dir_all(dir.join("storage")).expect("made");
        fs::write(dir.join("storage/VERSION"), "1").expect("written");
        let database = Connection::open(dir.join("server.db")).expect("opened");
        database.execute_batch(TABLES).expect("tables");
        let server = AtticServer { dir, database };
        let secret = fs::read_to_string(made.store.folder().join("secret")).expect("the key");
        let cache = server.add_cache("main", secret.trim(), text(&made.store.store_dir()));
        for entry in fs::read_dir(&made.dir).expect("the cache").flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "narinfo") {
                server.add_path(cache, &made.dir, &entry.path(), compression);
            }
        }
        server
    }

    fn add_cache(&self, name: &str, keypair: &str, store_dir: &str) -> i64 {
        let row = "INSERT INTO cache (name, keypair, is_public, store_dir, priority, upstream_cache_key_names, created_at) \
                   VALUES (?1, ?2, 0, ?3, 41, '[]', ?4)";
        self.database.execute(row, params![name, keypair, store_dir, MOMENT]).expect("a row");
        self.database.last_insert_rowid()
    }

    /// A path with its NAR in chunks. Attic keeps no signature of its own.
    fn add_path(&self, cache: i64, dir: &Path, narinfo: &Path, compression: &str) {
        let narinfo = fs::read_to_string(narinfo).expect("a narinfo");
        let nar = fs::read(dir.join(field(&narinfo, "URL"))).expect("a plain NAR");
        let pieces: Vec<&[u8]> = nar.chunks(nar.len().div_ceil(CHUNKS)).collect();
        assert_eq!(pieces.len(), CHUNKS);
        let row = "INSERT INTO nar (state, nar_hash, nar_size, compression, num_chunks, created_at) \
                   VALUES ('V', ?1, ?2, ?3, ?4, ?5)";
        let number = i64::try_from(pieces.len()).expect("few");
        self.database
            .execute(row, params![hash(&nar), size(&nar), compression, number, MOMENT])
            .expect("a row");
        let nar_id = self.database.last_insert_rowid();
        for (seq, piece) in (0_i64..).zip(pieces) {
            let chunk = self.add_chunk(&format!("{nar_id:04x}-{seq}.chunk"), piece, compression);
            let row = "INSERT INTO chunkref (nar_id, seq, chunk_id) VALUES (?1, ?2, ?3)";
            self.database.execute(row, params![nar_id, seq, chunk]).expect("a row");
        }
        let path = field(&narinfo, "StorePath");
        let references: Vec<&str> = field(&narinfo, "References").split_whitespace().collect();
        let references = serde_json::to_string(&references).expect("JSON");
        let deriver = fields(&narinfo, "Deriver").first().map(|deriver| (*deriver).to_owned());
        let row = "INSERT INTO object (cache_id, nar_id, store_path_hash, store_path, \"references\", deriver, sigs, \
                   created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, '[]', ?7)";
        let hash = &base_name(Path::new(path))[..32];
        self.database
            .execute(row, params![cache, nar_id, hash, path, references, deriver, MOMENT])
            .expect("a row");
    }

    fn add_chunk(&self, name: &str, plain: &[u8], compression: &str) -> i64 {
        let file = self.file(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        let packed = compressed(plain, compression);
        fs::write(file, &packed).expect("written");
        let row = "INSERT INTO chunk (state, chunk_hash, chunk_size, file_hash, file_size, compression, remote_file, \
                   remote_file_id, created_at) VALUES ('V', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let place = serde_json::json!({ "Local": { "name": name } }).to_string();
        let id = format!("local:{name}");
        let row = self.database.execute(
            row,
            params![hash(plain), size(plain), hash(&packed), size(&packed), compression, place, id, MOMENT],
        );
        row.expect("a row");
        self.database.last_insert_rowid()
    }

    /// The file of this name.
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join("storage").join(&name[..1]).join(&name[..2]).join(name)
    }

    /// The id and the file of the middle chunk of a path.
    fn chunk_of(&self, path: &Path) -> (i64, PathBuf) {
        let query = "SELECT c.id, c.remote_file_id FROM object o JOIN chunkref r ON r.nar_id = o.nar_id \
                     JOIN chunk c ON c.id = r.chunk_id WHERE o.store_path = ?1 AND r.seq = 1";
        let (id, name) = self
            .database
            .query_row(query, [text(path)], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
            .expect("a chunk");
        (id, self.file(name.strip_prefix("local:").expect("a local one")))
    }

    fn change(&self, statement: &str) {
        self.database.execute_batch(statement).expect("changed");
    }

    fn import(&self, ondine: &Ondine, key: &str, more: &[&str]) -> Finished {
        import(ondine, &self.dir, &[&["--trusted-key", key], more].concat())
    }
}

fn hash(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn size(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).expect("small")
}

/// A chunk compressed by itself, as attic names the forms.
fn compressed(plain: &[u8], compression: &str) -> Vec<u8> {
    let mut packed = Vec::new();
    match compression {
        "none" => packed = plain.to_vec(),
        "zstd" => packed = zstd::encode_all(plain, 8).expect("zstd"),
        "xz" => {
            let mut encoder = liblzma::read::XzEncoder::new(plain, 6);
            encoder.read_to_end(&mut packed).expect("xz");
        }
        "br" => {
            let mut encoder = brotli::CompressorReader::new(plain, 4096, 5, 22);
            encoder.read_to_end(&mut packed).expect("brotli");
        }
        other => panic!("attic has no {other}"),
    }
    packed
}

#[test]
fn chunks_of_each_compression_are_served_to_a_client_with_the_key_of_their_cache() {
    let made = made("none");
    let client = Client::new(Release::Host, &made.store.store_dir());
    for compression in ["zstd", "xz", "br", "none"] {
        let attic = AtticServer::of(&made, compression);
        let (_store, _daemon, ondine) = empty_server(&made);
        let dry = attic.import(&ondine, &made.key, &["--dry-run"]).must_succeed().text();
        assert!(dry.starts_with("would import "), "{dry}");
        let first = attic.import(&ondine, &made.key, &[]).must_succeed().text();
        assert!(first.contains("; 0 refused") && !first.starts_with("imported 0 "), "{first}");
        let narinfo = served(&ondine, made.top.out());
        assert!(narinfo.contains("Sig: old-1:"), "signed as attic would: {narinfo}");
        client.fetch(&ondine.substituter(), &[made.top.out()]).must_succeed();
        let again = attic.import(&ondine, &made.key, &[]).must_succeed().text();
        assert!(again.starts_with("imported 0 of "), "{again}");
    }
}

#[test]
fn without_the_key_of_the_cache_only_what_another_trusted_key_has_signed_is_taken() {
    let made = made("none");
    let attic = AtticServer::of(&made, "zstd");
    let (_store, _daemon, ondine) = empty_server(&made);
    let refused = import(&ondine, &attic.dir, &[]).must_fail();
    let advice = format!("--trusted-key {}", made.key.trim());
    assert!(refused.stderr.contains(&advice), "the key is told: {refused}");
    assert!(refused.text().starts_with("imported 0 of 3 "), "{refused}");
    // Signatures that came with the paths, in a cache whose key is another one.
    let narinfos = fs::read_dir(&made.dir).expect("the cache").flatten();
    for narinfo in narinfos.filter(|entry| entry.path().extension().is_some_and(|end| end == "narinfo")) {
        let narinfo = fs::read_to_string(narinfo.path()).expect("a narinfo");
        let signatures = serde_json::to_string(&fields(&narinfo, "Sig")).expect("JSON");
        let update = "UPDATE object SET sigs = ?1 WHERE store_path = ?2";
        attic.database.execute(update, params![signatures, field(&narinfo, "StorePath")]).expect("a row");
    }
    attic.change("UPDATE cache SET keypair = 'lost'");
    attic.import(&ondine, &made.key, &[]).must_succeed();
    assert!(served(&ondine, made.top.out()).contains("Sig: old-1:"));
}

#[test]
fn a_chunk_that_is_damaged_or_missing_is_told_and_everything_else_is_imported() {
    let made = made("none");
    let attic = AtticServer::of(&made, "zstd");
    let (_store, _daemon, ondine) = empty_server(&made);
    let (chunk, file) = attic.chunk_of(made.top.out());
    let name = base_name(made.top.out());
    let refused = |words: &str| {
        let refused = attic.import(&ondine, &made.key, &[]).must_fail();
        assert!(refused.stderr.contains(name) && refused.stderr.contains(words), "{words}: {refused}");
        assert!(refused.text().contains("; 1 refused"), "{refused}");
        refused.text()
    };
    let whole = fs::read(&file).expect("the chunk");
    // Another chunk in its place, which decodes well.
    fs::write(&file, compressed(b"something else", "zstd")).expect("written");
    let first = refused("chunk 2 of 3: its file is damaged");
    assert!(!first.starts_with("imported 0 "), "what it refers to is there: {first}");
    fs::write(&file, &whole[..whole.len() / 2]).expect("written");
    refused("chunk 2 of 3: ");
    fs::remove_file(&file).expect("removed");
    refused("chunk 2 of 3: No such file");
    std::os::unix::fs::symlink("/etc/passwd", &file).expect("made");
    refused("no file of the cache");
    fs::remove_file(&file).expect("removed");
    fs::write(&file, &whole).expect("written");

    let places = [
        (r#"{"S3":{"region":"r","bucket":"b","key":"k"}}"#, "in a bucket"),
        (r#"{"Local":{"name":"../../../../etc/passwd"}}"#, "outside of the cache"),
        ("nonsense", "its place is not understood"),
    ];
    let place: String = attic
        .database
        .query_row("SELECT remote_file FROM chunk WHERE id = ?1", [chunk], |row| row.get(0))
        .expect("a row");
    let set_place = |place: &str| {
        let update = "UPDATE chunk SET remote_file = ?1 WHERE id = ?2";
        attic.database.execute(update, params![place, chunk]).expect("a row");
    };
    for (wrong, words) in places {
        set_place(wrong);
        refused(words);
    }
    set_place(&place);
    for (state, words) in [("P", "not uploaded to its end"), ("V", "its compression \"lzo\" is unknown")] {
        attic.change(&format!("UPDATE chunk SET state = '{state}', compression = 'lzo' WHERE id = {chunk}"));
        refused(words);
    }
    attic.change(&format!("UPDATE chunk SET compression = 'zstd' WHERE id = {chunk}"));
    attic.change(&format!("UPDATE chunkref SET chunk_id = NULL WHERE chunk_id = {chunk}"));
    refused("the database has lost it");
    attic.change(&format!(
        "DELETE FROM chunkref WHERE chunk_id IS NULL; DELETE FROM chunk WHERE id = {chunk}"
    ));
    refused("the database has 2 of its 3 chunks");
}

#[test]
fn the_cache_is_chosen_by_its_name_and_what_is_no_attic_server_is_said_to_be_none() {
    let made = made("none");
    let attic = AtticServer::of(&made, "none");
    let (_store, _daemon, ondine) = empty_server(&made);
    attic.add_cache("other", "other-1:bad", "/other/store");
    let refused = |arguments: &[&str], words: &str| {
        let refused = attic.import(&ondine, &made.key, arguments).must_fail();
        assert!(refused.stderr.contains(words), "{words}: {refused}");
        assert!(!refused.stderr.contains("bad"), "a key in a message: {refused}");
    };
    refused(&[], "several caches: name one of its caches with --cache (main, other)");
    refused(&["--cache", "mian"], "there is no cache mian");
    refused(&["--cache", "other"], "the store /other/store");
    attic.import(&ondine, &made.key, &["--cache", "main", "--dry-run"]).must_succeed();
    attic.change("UPDATE cache SET deleted_at = '2026-06-30' WHERE name = 'other'");

    // Places that attic's settings name, and the layout before that of now.
    let storage = attic.dir.join("storage");
    fs::remove_file(storage.join("VERSION")).expect("removed");
    let (_, file) = attic.chunk_of(made.top.out());
    fs::rename(&file, storage.join(file.file_name().expect("a name"))).expect("moved");
    let database = attic.dir.join("server.db");
    let apart = ["--trusted-key", &made.key, "--database", text(&database)];
    let partly = import(&ondine, &storage, &apart).must_fail();
    assert!(partly.stderr.contains("No such file"), "only one chunk is where it was then: {partly}");
    fs::write(storage.join("VERSION"), "2").expect("written");
    refused(&[], "only up to 1 is known");
    fs::write(storage.join("VERSION"), "1").expect("written");
    fs::rename(storage.join(file.file_name().expect("a name")), &file).expect("moved back");
    import(&ondine, &storage, &apart).must_succeed();

    let wrong = made.store.folder().join("secret");
    let no_database = import(&ondine, &storage, &["--database", text(&wrong)]).must_fail();
    assert!(no_database.stderr.contains("should be the SQLite database of an attic server"), "{no_database}");
    let no_cache = import(&ondine, &made.dir, &["--cache", "main"]).must_fail();
    assert!(no_cache.stderr.contains("not the directory of an attic server"), "{no_cache}");
}
