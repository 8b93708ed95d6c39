//! Tests of the verification of NARs.

use super::*;

fn digest(bytes: &[u8]) -> NarDigest {
    NarDigest { hash: NarHash::from_bytes(Sha256::digest(bytes).into()), bytes: bytes.len() as u64 }
}

fn exactly(bytes: &[u8]) -> Promise {
    Promise::Exactly(digest(bytes))
}

/// Writes `bytes` in pieces of such a size.
fn pieces(bytes: &[u8], size: usize) -> impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Error> {
    move |chunks| Ok(bytes.chunks(size).try_for_each(|piece| chunks.write_all(piece))?)
}

#[test]
fn what_is_promised_comes_whole_in_full_chunks_however_it_was_written() {
    let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 5).map(|n| (n % 249) as u8).collect();
    for size in [7, CHUNK_BYTES, bytes.len()] {
        let (mut taken, mut sizes) = (Vec::new(), Vec::new());
        let take = |chunk: &[u8]| {
            taken.extend_from_slice(chunk);
            sizes.push(chunk.len());
            Ok(())
        };
        verify(exactly(&bytes), Origin::Tree, pieces(&bytes, size), take).expect("as promised");
        assert!(taken == bytes, "pieces of {size}");
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 5], "pieces of {size}");
    }
}

#[test]
fn what_is_one_chunk_is_verified_as_whatever_is_more() {
    for length in [0, 1, CHUNK_BYTES] {
        let bytes = vec![3; length];
        let mut sizes = Vec::new();
        let take = |chunk: &[u8]| {
            sizes.push(chunk.len());
            Ok(())
        };
        let verified = verify(exactly(&bytes), Origin::Tree, pieces(&bytes, 1000), take).expect("promised");
        assert_eq!(verified.digest, digest(&bytes));
        assert_eq!(sizes, [length].into_iter().filter(|bytes| *bytes > 0).collect::<Vec<_>>());
    }
    let nar = nar_of(b"small");
    let sent = |promise, bytes| verify(promise, Origin::Sent(None), pieces(bytes, 10), |_| Ok(()));
    sent(Promise::AtMost(1000), &nar).expect("a NAR");
    assert!(matches!(sent(Promise::AtMost(20), &nar), Err(Error::TooLarge { bytes_max: 20 })));
    assert!(matches!(sent(exactly(b"other"), &nar), Err(Error::Mismatch { .. })));
    assert!(matches!(sent(Promise::AtMost(1000), &nar[..40]), Err(Error::Malformed(_))));
    let broken = |chunks: &mut ChunkWriter<'_>| {
        chunks.write_all(&nar[..40])?;
        Err(Error::Sent(io::ErrorKind::UnexpectedEof.into()))
    };
    let error = verify(Promise::AtMost(1000), Origin::Sent(None), broken, |_| Ok(()));
    assert!(matches!(error, Err(Error::Sent(_))), "{error:?}");
    let full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
    let error = verify(exactly(&nar), Origin::Sent(None), pieces(&nar, 10), full);
    assert!(matches!(error, Err(Error::Write(_))), "{error:?}");
}

#[test]
fn what_is_other_longer_or_shorter_is_a_mismatch() {
    let bytes = vec![1; 2 * CHUNK_BYTES];
    let mut other = bytes.clone();
    other[CHUNK_BYTES] = 2;
    for wrong in [&other[..], &[&bytes[..], &[1]].concat(), &bytes[1..], &[]] {
        let error =
            verify(exactly(&bytes), Origin::Tree, pieces(wrong, 1000), |_| Ok(())).expect_err("not promised");
        assert!(matches!(error, Error::Mismatch { .. }), "{} bytes: {error:?}", wrong.len());
    }
}

#[test]
fn who_makes_it_and_who_takes_it_each_end_it_with_their_own_error() {
    let bytes = vec![1; 20 * CHUNK_BYTES];
    let full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
    let error =
        verify(exactly(&bytes), Origin::Tree, pieces(&bytes, 1000), full).expect_err("nowhere to put it");
    assert!(matches!(&error, Error::Write(why) if why.kind() == io::ErrorKind::StorageFull), "{error:?}");
    let broken = |chunks: &mut ChunkWriter| {
        chunks.write_all(&bytes[..1000])?;
        Err(Error::Sent(io::ErrorKind::BrokenPipe.into()))
    };
    let error = verify(exactly(&bytes), Origin::Tree, broken, |_| Ok(())).expect_err("it broke off");
    assert!(matches!(error, Error::Sent(_)), "{error:?}");
}

/// The NAR of a file with these contents.
fn nar_of(contents: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), contents).expect("written");
    let mut nar = Vec::new();
    nar::dump(&folder.path().join("file"), &mut nar).expect("a NAR");
    nar
}

#[test]
fn what_was_sent_is_refused_where_it_is_no_nar_however_well_it_is_promised() {
    let good = nar_of(&vec![7; 2 * CHUNK_BYTES]);
    let sent = Origin::Sent(None);
    verify(exactly(&good), sent, pieces(&good, 1000), |_| Ok(())).expect("a NAR");
    let trailing = [&good[..], &[0; 8]].concat();
    let page = b"<html>Please log in</html>".repeat(100_000);
    for wrong in [&trailing[..], &good[8..], &good[..good.len() - 8], &page, &[]] {
        let error = verify(exactly(wrong), sent, pieces(wrong, 1000), |_| Ok(())).expect_err("no NAR");
        assert!(matches!(error, Error::Malformed(_)), "{} bytes: {error:?}", wrong.len());
    }
}

#[test]
fn what_is_no_nar_is_left_at_once() {
    let mut made = 0;
    let endless = |chunks: &mut ChunkWriter| loop {
        chunks.write_all(&[0; 1000])?;
        made += 1000;
    };
    let promised = Promise::AtMost(1 << 60);
    let error = verify(promised, Origin::Sent(None), endless, |_| Ok(())).expect_err("no NAR");
    assert!(matches!(error, Error::Malformed(_)) && made < 20 * CHUNK_BYTES, "{made} bytes: {error:?}");
}

#[test]
fn what_nobody_has_promised_is_measured_within_its_bound() {
    let nar = nar_of(&vec![7; 2 * CHUNK_BYTES]);
    let bytes = nar.len() as u64;
    let measure =
        |bytes_max| verify(Promise::AtMost(bytes_max), Origin::Sent(None), pieces(&nar, 1000), |_| Ok(()));
    for bytes_max in [bytes, u64::MAX] {
        assert_eq!(measure(bytes_max).expect("it may have as many").digest, digest(&nar));
    }
    for bytes_max in [bytes - 1, 1000, 0] {
        let error = measure(bytes_max).expect_err("it has more");
        assert!(matches!(error, Error::TooLarge { .. }), "{bytes_max}: {error:?}");
    }
}

#[test]
fn contents_that_a_path_is_not_named_by_are_refused() {
    let nar = nar_of(b"contents");
    let addressed = |hash: NarHash| {
        let path = "0123456789abcdfghijklmnpqrsvwxyz-p".parse().expect("a path");
        Addressed::new(format!("fixed:{hash}").parse().expect("an address"), &path, &Default::default())
    };
    for (contents, right) in [(&b"contents"[..], true), (b"others", false)] {
        let addressed = addressed(digest(contents).hash);
        let origin = Origin::Sent(Some(&addressed));
        assert_eq!(verify(exactly(&nar), origin, pieces(&nar, 7), |_| Ok(())).is_ok(), right);
    }
}
