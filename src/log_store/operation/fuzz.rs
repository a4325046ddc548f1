//! Damaged headers of both lines: against p2panda-core where that can be asked, and otherwise
//! against the reader of canonical CBOR that line 0.7 stands on.

use bytes::Bytes;
use cbor_core::{DecodeOptions, Strictness};

use super::{
    golden_tests::Golden,
    stock_tests::{assert_no_laxer_than_stock, sign_again},
    *,
};
use crate::fuzz::{Fuzz, Shape, bounded};

fn corpus(line: Line) -> Vec<Bytes> {
    let golden = Golden::of(line);
    let headers = golden.all("header.").chain(golden.all("malformed."));
    // Short ones: what is long is long in one way.
    headers.filter(|it| it.len() < 1_000).collect()
}

fn check(line: Line, bytes: &[u8]) {
    let header = Bytes::copy_from_slice(bytes);
    let decoded = bounded(bytes, || Operation::decode(line, header.clone(), None));
    let operation = match decoded {
        Ok(operation) => operation,
        Err(refused) => return assert!(refused.to_string().len() > 20),
    };
    assert_eq!(operation.header(), bytes);
    assert_eq!(operation.id().as_bytes(), blake3::hash(bytes).as_bytes());
    assert_eq!(operation.backlink().is_some(), operation.seq() > 0);
    assert!(operation.payload_size() <= BODY_BYTES_MAX);
    // A body that the header does not name is refused, whatever the header says.
    let other = Operation::decode(line, header.clone(), Some(Bytes::from_static(b"other")));
    assert!(other.is_err());
    let foreign = Operation::decode(line.other(), header, None);
    assert!(foreign.is_err(), "it is of both lines");
}

#[test]
fn fuzzed_headers_of_line_0_6() {
    Fuzz::new("headers of 0.6", Shape::Cbor, corpus(Line::V06)).run(|bytes| {
        check(Line::V06, bytes);
        let agreed = |bytes: &[u8]| assert_no_laxer_than_stock(bytes).expect("stock agrees");
        agreed(bytes);
        let mut signed = bytes.to_vec();
        sign_again(&mut signed, &[1; 32]);
        agreed(&signed);
    });
}

#[test]
fn fuzzed_headers_of_line_0_7() {
    Fuzz::new("headers of 0.7", Shape::Cbor, corpus(Line::V07)).run(|bytes| {
        check(Line::V07, bytes);
        if Operation::decode(Line::V07, Bytes::copy_from_slice(bytes), None).is_ok() {
            let strict = DecodeOptions::new()
                .strictness(Strictness::STRICT)
                .recursion_limit(64)
                .length_limit(512);
            let value = strict.decode(bytes).expect("it is canonical");
            assert_eq!(value.encode(), bytes);
        }
    });
}
