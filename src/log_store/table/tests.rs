//! The bytes of every key and record, literally.

use super::*;

const LOG: LogId = LogId::from_bytes([2; 32]);
const AUTHOR: Author = Author::from_bytes([3; 32]);
const ID: OperationId = OperationId::from_bytes([4; 32]);

fn hex(bytes: impl AsRef<[u8]>) -> String {
    data_encoding::HEXLOWER.encode(bytes.as_ref())
}

fn of(byte: u8) -> String {
    hex([byte; 32])
}

#[test]
fn keys_are_frozen_and_come_back() {
    let (log, author, id) = (of(2), of(3), of(4));
    let topic = Topic::from_bytes([1; 32]);
    let key = topic_key(topic);
    assert_eq!(hex(&key), format!("01{}", of(1)));
    assert_eq!(decode_topic_key(&key).expect("a key"), topic);
    let key = head_key(LOG, AUTHOR);
    assert_eq!(hex(&key), format!("02{log}{author}"));
    assert_eq!(decode_head_key(&key).expect("a key"), (LOG, AUTHOR));
    let key = operation_key(LOG, AUTHOR, 258);
    assert_eq!(hex(&key), format!("03{log}{author}00000102"));
    let place = Place {
        log: LOG,
        author: AUTHOR,
        seq: 258,
    };
    assert_eq!(decode_operation_key(&key).expect("a key"), place);
    assert_eq!(hex(place_key(ID)), format!("04{id}"));
    let key = order_key(LOG, 258);
    assert_eq!(hex(&key), format!("05{log}0000000000000102"));
    assert_eq!(decode_order_key(&key).expect("a key"), (LOG, 258));
    let key = sweep_key(LOG, AUTHOR);
    assert_eq!(hex(&key), format!("06{log}{author}"));
    assert_eq!(decode_sweep_key(&key).expect("a key"), (LOG, AUTHOR));
}

#[test]
fn records_are_frozen_and_come_back() {
    let topic = TopicRecord {
        line: Line::V06,
        open: true,
        next: 258,
    };
    assert_eq!(hex(topic.encode()), "0106010000000000000102");
    assert_eq!(
        TopicRecord::decode(&topic.encode()).expect("a record"),
        topic
    );

    let empty = Head::new(Line::V07);
    assert_eq!(hex(empty.encode()), "010700");
    assert_eq!(Head::decode(&empty.encode()).expect("a record"), empty);
    let head = Head {
        line: Line::V07,
        associated: false,
        held: Some(Held {
            first: 5,
            last: 6,
            last_id: ID,
            begins: false,
            bytes_before: 7,
            bytes_through: 8,
        }),
    };
    let wanted = format!(
        "0107070000000500000006{}00000000000000070000000000000008",
        of(4)
    );
    assert_eq!(hex(head.encode()), wanted);
    assert_eq!(Head::decode(&head.encode()).expect("a record"), head);

    let operation = OperationRecord {
        number: 258,
        bytes_through: 259,
        id: ID,
        header: Bytes::from_static(b"\xaa\xbb"),
        body: Some(Bytes::from_static(b"\xcc")),
    };
    let numbers = "00000000000001020000000000000103";
    let wanted = format!("0101{numbers}{}00000002aabbcc", of(4));
    assert_eq!(hex(operation.encode()), wanted);
    let decoded = OperationRecord::decode(&operation.encode().into());
    assert_eq!(decoded.expect("a record"), operation);
    let front = OperationRecord::decode_front(&operation.encode());
    let front = front.expect("a record");
    assert_eq!(
        (front.number, front.bytes_through, front.id),
        (258, 259, ID)
    );
    let bare = OperationRecord {
        body: None,
        ..operation
    };
    let wanted = format!("0100{numbers}{}00000002aabb", of(4));
    assert_eq!(hex(bare.encode()), wanted);
    assert_eq!(
        OperationRecord::decode(&bare.encode().into()).expect("a record"),
        bare
    );
    assert_eq!(bare.encode().len() - 2, RECORD_HEAD);
}

#[test]
fn places_orders_and_sweeps_are_frozen_and_come_back() {
    let place = Place {
        log: LOG,
        author: AUTHOR,
        seq: 258,
    };
    assert_eq!(hex(place.encode()), format!("01{}{}00000102", of(2), of(3)));
    assert_eq!(Place::decode(&place.encode()).expect("a record"), place);
    let order = encode_order(AUTHOR, 258);
    assert_eq!(hex(&order), format!("01{}00000102", of(3)));
    assert_eq!(decode_order(&order).expect("a record"), (AUTHOR, 258));
    assert_eq!(hex(encode_sweep(258)), "0100000102");
    assert_eq!(decode_sweep(&encode_sweep(258)).expect("a record"), 258);
    assert_eq!(hex(authors_key(LOG)), format!("09{}", of(2)));
    assert_eq!(hex(encode_authors(258)), "0100000102");
    assert_eq!(decode_authors(&encode_authors(258)).expect("a record"), 258);
}

#[test]
fn ranges_hold_their_keys_and_no_others() {
    let inside = |(from, to): (Vec<u8>, Vec<u8>), key: Vec<u8>| from <= key && key < to;
    let last = LogId::from_bytes([0xff; 32]);
    let other = Author::from_bytes([0xff; 32]);
    assert!(inside(heads(last), head_key(last, other)));
    assert!(!inside(heads(LOG), head_key(last, AUTHOR)));
    for seq in [3, 7] {
        assert!(inside(
            operations(LOG, AUTHOR, 3, 7),
            operation_key(LOG, AUTHOR, seq)
        ));
    }
    for seq in [2, 8] {
        assert!(!inside(
            operations(LOG, AUTHOR, 3, 7),
            operation_key(LOG, AUTHOR, seq)
        ));
    }
    let all = operations(last, other, 0, u32::MAX);
    assert!(inside(all.clone(), operation_key(last, other, u32::MAX)));
    assert!(!inside(all, place_key(ID)));
    for number in [5, 6] {
        assert!(inside(order(last, 5, 7), order_key(last, number)));
    }
    for number in [4, 7] {
        assert!(!inside(order(last, 5, 7), order_key(last, number)));
    }
    assert!(inside(topics(), topic_key(Topic::from_bytes([0xff; 32]))));
    assert!(inside(sweeps(), sweep_key(last, other)));
}

#[test]
fn damaged_records_are_errors() {
    let operation = OperationRecord {
        number: 1,
        bytes_through: 2,
        id: ID,
        header: Bytes::from_static(b"head"),
        body: None,
    };
    let whole = operation.encode();
    for cut in 0..whole.len() {
        let bytes = Bytes::copy_from_slice(&whole[..cut]);
        assert!(OperationRecord::decode(&bytes).is_err(), "cut at {cut}");
    }
    let mut long = whole.clone();
    long.push(0);
    assert!(OperationRecord::decode(&long.into()).is_err());
    let mut newer = TopicRecord {
        line: Line::V06,
        open: true,
        next: 0,
    }
    .encode();
    newer[0] = 2;
    let error = TopicRecord::decode(&newer).expect_err("an unknown version");
    assert!(error.to_string().contains("newer program"), "{error}");
    newer[0] = 1;
    newer[1] = 8;
    let error = TopicRecord::decode(&newer).expect_err("an unknown line");
    assert!(error.to_string().contains("unknown line"), "{error}");
    assert!(decode_head_key(&topic_key(Topic::from_bytes([1; 32]))).is_err());
}
