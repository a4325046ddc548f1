//! Every rule of the machine, without a group.

use bytes::Bytes;

use super::*;
use crate::log_store::{
    mint::{Writer, forged},
    reader::{self, Limits},
};

const AT: Position = Position {
    term: 1,
    index: 1,
    offset: 0,
};

fn topic() -> Topic {
    Topic::named("cats")
}

fn opened(line: Line) -> LogStore {
    let mut store = LogStore::new();
    let topic = topic();
    let output = store.apply(AT, LogCommand::OpenTopic { topic, line });
    assert_eq!(output, LogOutput::Done);
    store
}

fn raw(operation: &Operation) -> RawOperation {
    RawOperation {
        header: operation.header().clone(),
        body: operation.body().cloned(),
    }
}

fn append<'a>(
    store: &mut LogStore,
    operations: impl IntoIterator<Item = &'a Operation>,
) -> Vec<OutcomeRun> {
    let operations = operations.into_iter().map(raw).collect();
    let topic = topic();
    match store.apply(AT, LogCommand::Append { topic, operations }) {
        LogOutput::Appended(runs) => runs,
        other => panic!("{other:?}"),
    }
}

fn appended(number: u64, count: u32) -> OutcomeRun {
    OutcomeRun::Appended { number, count }
}

fn held(number: u64, count: u32) -> OutcomeRun {
    OutcomeRun::Held { number, count }
}

fn read<R>(store: &LogStore, read: impl FnOnce(&crate::machine::Moment<'_>) -> io::Result<R>) -> R {
    let view = store.view();
    let done = view.table.read(read).expect("memory is there");
    done.expect("it is readable")
}

/// The sequence numbers that the topic's commit order has, with their numbers, page by page.
fn commits(store: &LogStore) -> Vec<(u64, u32)> {
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let page = read(store, |it| reader::commits(it, topic(), next, Limits::PAGE));
        assert!(page.operations.len() <= Limits::PAGE.operations);
        let operations = page.operations.iter();
        found.extend(operations.map(|(number, it)| (*number, it.seq())));
        if page.next == next {
            return found;
        }
        next = page.next;
    }
}

/// What is in the table, without the count of authors.
fn keys(store: &LogStore) -> usize {
    let mut count = 0;
    store.table.scan(&[], &[], Order::Ascending, &mut |key, _| {
        count += usize::from(key[0] != 9);
        ControlFlow::Continue(())
    });
    count
}

#[test]
fn a_log_grows_and_what_is_held_changes_nothing() {
    for line in [Line::V06, Line::V07] {
        let mut store = opened(line);
        let mut writer = Writer::new(1, topic(), line);
        let operations = writer.many(5);
        assert_eq!(append(&mut store, &operations), [appended(0, 5)]);
        let before = keys(&store);
        assert_eq!(append(&mut store, &operations[1..4]), [held(1, 3)]);
        assert_eq!(keys(&store), before);
        let heights = read(&store, |it| reader::heights(it, topic()));
        assert_eq!(heights[&writer.author()][&writer.log()], 4);
        assert_eq!(commits(&store), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]);
        let ids = operations.iter().map(Operation::id);
        let numbers = read(&store, |it| reader::numbers(it, ids));
        assert_eq!(numbers, (0..5).map(Some).collect::<Vec<_>>());
    }
}

#[test]
fn bytes_come_back_as_they_were_and_sizes_are_sums() {
    let mut store = opened(Line::V06);
    let mut writer = Writer::new(1, topic(), Line::V06);
    let operations = [writer.next("a"), writer.next(""), writer.next("three")];
    append(&mut store, &operations);
    let (author, log) = (writer.author(), writer.log());
    let page = read(&store, |it| {
        reader::page(it, author, log, None, 9, Limits::PAGE)
    });
    for (stored, operation) in page.iter().zip(&operations) {
        assert_eq!(stored.seq, operation.seq());
        assert_eq!(&stored.header, operation.header());
        assert_eq!(stored.body.as_ref(), operation.body());
    }
    for after in [None, Some(0), Some(1), Some(2), Some(u32::MAX)] {
        for until in 0..4 {
            let wanted =
                |it: &&Operation| after.is_none_or(|after| it.seq() > after) && it.seq() <= until;
            let bytes = operations.iter().filter(wanted).map(Operation::bytes).sum();
            let count = operations.iter().filter(wanted).count() as u64;
            let size = read(&store, |it| reader::size(it, author, log, after, until));
            assert_eq!(size, (count, bytes), "after {after:?} until {until}");
        }
    }
}

#[test]
fn a_page_ends_at_its_limits_and_holds_at_least_one() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let operations = writer.many(5);
    append(&mut store, &operations);
    let (author, log) = (writer.author(), writer.log());
    let lengths = |operations, bytes| {
        let limits = Limits { operations, bytes };
        let page = read(&store, |it| {
            reader::page(it, author, log, Some(0), 3, limits)
        });
        page.iter().map(|it| it.seq).collect::<Vec<_>>()
    };
    assert_eq!(lengths(10, usize::MAX), [1, 2, 3]);
    assert_eq!(lengths(2, usize::MAX), [1, 2]);
    assert_eq!(lengths(10, 1), [1]);
    let two = operations[1].bytes() + operations[2].bytes();
    assert_eq!(lengths(10, usize::try_from(two).expect("small")), [1, 2]);
    assert_eq!(lengths(0, 0), [1]);
}

#[test]
fn a_topic_must_be_open_and_keeps_its_line() {
    let mut store = LogStore::new();
    let mut writer = Writer::new(1, topic(), Line::V06);
    let operations = vec![raw(&writer.next("a"))];
    let topic = topic();
    let command = LogCommand::Append { topic, operations };
    let not_open = LogOutput::Refused(LogRefused::NotOpen);
    assert_eq!(store.apply(AT, command.clone()), not_open);
    assert_eq!(store.apply(AT, LogCommand::CloseTopic { topic }), not_open);
    let open = |line| LogCommand::OpenTopic { topic, line };
    // Still empty: the line may change.
    assert_eq!(store.apply(AT, open(Line::V07)), LogOutput::Done);
    assert_eq!(store.apply(AT, open(Line::V06)), LogOutput::Done);
    assert_eq!(
        store.apply(AT, command.clone()),
        LogOutput::Appended(vec![appended(0, 1)])
    );
    let other = LogOutput::Refused(LogRefused::OtherLine { line: Line::V06 });
    assert_eq!(store.apply(AT, open(Line::V07)), other);
    assert_eq!(
        store.apply(AT, LogCommand::CloseTopic { topic }),
        LogOutput::Done
    );
    assert_eq!(store.apply(AT, command.clone()), not_open);
    assert_eq!(read(&store, reader::topics), []);
    assert_eq!(store.apply(AT, open(Line::V07)), other);
    assert_eq!(store.apply(AT, open(Line::V06)), LogOutput::Done);
    assert_eq!(read(&store, reader::topics), [(topic, Line::V06)]);
    assert_eq!(
        store.apply(AT, command),
        LogOutput::Appended(vec![held(0, 1)])
    );
}

#[test]
fn gaps_forks_and_wrong_backlinks_are_refused() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let operations = writer.many(4);
    let gap = |next| OutcomeRun::Refused(ChainRefused::Gap { next });
    assert_eq!(append(&mut store, &operations[1..2]), [gap(0)]);
    assert_eq!(append(&mut store, &operations[..2]), [appended(0, 2)]);
    assert_eq!(append(&mut store, &operations[3..]), [gap(2)]);
    let fork = writer.aside(1, Some(operations[0].id()), false);
    let held = operations[1].id();
    let forked = [OutcomeRun::Refused(ChainRefused::Fork { held })];
    assert_eq!(append(&mut store, [&fork]), forked);
    // The flag changes nothing at a place that is taken.
    let fork = writer.aside(1, Some(operations[0].id()), true);
    assert_eq!(append(&mut store, [&fork]), forked);
    let stray = writer.aside(2, Some(operations[0].id()), false);
    let stray = append(&mut store, [&stray]);
    let last = operations[1].id();
    assert_eq!(
        stray,
        [OutcomeRun::Refused(ChainRefused::Backlink { last })]
    );
    // One refused in the middle does not hold up another author.
    let other = Writer::new(2, topic(), Line::V07).next("b");
    let mixed = [&operations[3], &other, &operations[2], &operations[3]];
    assert_eq!(append(&mut store, mixed), [gap(2), appended(2, 3)]);
}

#[test]
fn what_is_not_of_the_topic_is_refused() {
    let mut store = opened(Line::V07);
    let other_log = Writer::new(1, Topic::named("dogs"), Line::V07).next("a");
    let other_line = Writer::new(1, topic(), Line::V06).next("a");
    let outcomes = append(&mut store, [&other_log, &other_line]);
    let refused = [ChainRefused::OtherLog, ChainRefused::Malformed];
    assert_eq!(outcomes, refused.map(OutcomeRun::Refused));
    let mut cut = raw(&Writer::new(1, topic(), Line::V07).next("a"));
    cut.header.truncate(20);
    let mut swapped = raw(&Writer::new(1, topic(), Line::V07).next("a"));
    swapped.body = Some("b".into());
    let (topic, operations) = (topic(), vec![cut, swapped]);
    let output = store.apply(AT, LogCommand::Append { topic, operations });
    let malformed = OutcomeRun::Refused(ChainRefused::Malformed);
    assert_eq!(output, LogOutput::Appended(vec![malformed; 2]));
    assert_eq!(keys(&store), 1, "the topic alone");
}

#[test]
fn a_forged_signature_is_the_proposers_to_find() {
    let operation = Writer::new(1, topic(), Line::V06).next("a");
    assert!(forged(&operation).verify().is_err());
    let operation = Writer::new(1, topic(), Line::V07).next("a");
    assert!(forged(&operation).verify().is_err());
}

#[test]
fn too_many_operations_are_refused_together() {
    let mut store = opened(Line::V07);
    let operation = raw(&Writer::new(1, topic(), Line::V07).next("a"));
    let append = |count| LogCommand::Append {
        topic: topic(),
        operations: vec![operation.clone(); count],
    };
    let refused = LogOutput::Refused(LogRefused::TooMany);
    let output = store.apply(AT, append(APPEND_OPERATIONS_MAX + 1));
    assert_eq!(output, refused);
    match store.apply(AT, append(APPEND_OPERATIONS_MAX)) {
        LogOutput::Appended(runs) => assert_eq!(runs[0], appended(0, 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_prune_flag_drops_what_is_below() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let below = writer.many(3);
    append(&mut store, &below);
    let flagged = writer.prune("flag");
    let after = writer.next("after");
    assert_eq!(append(&mut store, [&flagged, &after]), [appended(3, 2)]);
    assert_eq!(commits(&store), [(3, 3), (4, 4)]);
    let (author, log) = (writer.author(), writer.log());
    let size = |after| read(&store, |it| reader::size(it, author, log, after, 9));
    let bytes = flagged.bytes() + after.bytes();
    // Who holds nothing, or less, begins at the flag.
    assert_eq!(size(None), (2, bytes));
    assert_eq!(size(Some(1)), (2, bytes));
    assert_eq!(size(Some(3)), (1, after.bytes()));
    let numbers = read(&store, |it| {
        reader::numbers(it, [below[0].id(), flagged.id()])
    });
    assert_eq!(numbers, [None, Some(3)]);
    let pruned = [OutcomeRun::Refused(ChainRefused::Pruned { first: 3 })];
    assert_eq!(append(&mut store, &below[..1]), pruned);
    assert_eq!(append(&mut store, [&writer.aside(0, None, true)]), pruned);
    assert_eq!(append(&mut store, [&flagged]), [held(3, 1)]);
    // A topic, a head, and three keys for each operation that is left.
    assert_eq!(keys(&store), 2 + 2 * 3);
}

#[test]
fn the_prune_flag_may_leave_a_gap_and_may_begin_a_log() {
    let mut store = opened(Line::V06);
    let mut writer = Writer::new(1, topic(), Line::V06);
    let mut operations = writer.many(7);
    operations.push(writer.prune("flag"));
    operations.extend(writer.many(2));
    assert_eq!(append(&mut store, &operations[7..9]), [appended(0, 2)]);
    let (author, log) = (writer.author(), writer.log());
    let size = read(&store, |it| reader::size(it, author, log, None, 99));
    assert_eq!(size, (2, operations[7].bytes() + operations[8].bytes()));
    let far = writer.aside(1_000, Some(operations[0].id()), true);
    assert_eq!(append(&mut store, [&far]), [appended(2, 1)]);
    assert_eq!(commits(&store), [(2, 1_000)]);
    let beyond = writer.aside(u32::MAX, Some(far.id()), true);
    assert_eq!(append(&mut store, [&beyond]), [appended(3, 1)]);
}

#[test]
fn a_prune_without_the_flag_keeps_the_newest_and_is_no_beginning() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let operations = writer.many(5);
    append(&mut store, &operations);
    let (author, log) = (writer.author(), writer.log());
    let prune = |below| LogCommand::Prune { author, log, below };
    let bytes =
        |range: std::ops::Range<usize>| operations[range].iter().map(Operation::bytes).sum::<u64>();
    let pruned = |operations, bytes| LogOutput::Pruned {
        operations,
        bytes,
        left: false,
    };
    assert_eq!(store.apply(AT, prune(0)), pruned(0, 0));
    assert_eq!(store.apply(AT, prune(2)), pruned(2, bytes(0..2)));
    assert_eq!(store.apply(AT, prune(2)), pruned(0, 0));
    let size = |store: &LogStore, after| read(store, |it| reader::size(it, author, log, after, 9));
    // Whoever lacks what is gone is sent nothing: the rest would end its session.
    assert_eq!(size(&store, None), (0, 0));
    assert_eq!(size(&store, Some(0)), (0, 0));
    assert_eq!(size(&store, Some(1)), (3, bytes(2..5)));
    assert_eq!(store.apply(AT, prune(u32::MAX)), pruned(2, bytes(2..4)));
    let next = writer.next("goes on");
    assert_eq!(append(&mut store, [&next]), [appended(5, 1)]);
    assert_eq!(commits(&store), [(4, 4), (5, 5)]);
    // The flag makes a beginning again.
    let flagged = writer.prune("flag");
    append(&mut store, [&flagged]);
    assert_eq!(size(&store, None), (1, flagged.bytes()));
    assert_eq!(keys(&store), 2 + 3);
}

#[test]
fn a_long_prune_is_swept_a_bounded_number_at_a_time_and_seen_at_once() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let operations = writer.many(1_500);
    for chunk in operations.chunks(500) {
        append(&mut store, chunk);
    }
    let (author, log) = (writer.author(), writer.log());
    let below = 1_490;
    let output = store.apply(AT, LogCommand::Prune { author, log, below });
    assert!(
        matches!(output, LogOutput::Pruned { left: true, .. }),
        "{output:?}"
    );
    assert_eq!(keys(&store), 2 + 1 + 3 * (1_500 - SWEEP_OPERATIONS));
    let numbers = read(&store, |it| {
        reader::numbers(it, operations.iter().map(Operation::id))
    });
    assert_eq!(numbers.iter().flatten().count(), 10);
    let left: Vec<(u64, u32)> = (1_490..1_500).map(|seq| (u64::from(seq), seq)).collect();
    assert_eq!(commits(&store), left);
    // A restart in between does not forget it.
    let table = store.table.clone();
    store = LogStore::new();
    store.open(table);
    let mut bytes = Vec::new();
    store.snapshot().write_to(&mut bytes).expect("memory");
    let left = store.apply(AT, LogCommand::Sweep);
    assert_eq!(left, LogOutput::Swept { left: true });
    let left = store.apply(AT, LogCommand::Sweep);
    assert_eq!(left, LogOutput::Swept { left: false });
    assert_eq!(keys(&store), 2 + 3 * 10);
    // Nor does a restore, by one who had nothing to sweep.
    let restored = store.restore(SnapshotReader::new(&mut &bytes[..]));
    restored.expect("a snapshot");
    let left = store.apply(AT, LogCommand::Sweep);
    assert_eq!(left, LogOutput::Swept { left: true });
}

#[test]
fn an_author_taken_out_of_the_topic_is_not_named_and_not_appended_to() {
    let mut store = opened(Line::V07);
    let mut writer = Writer::new(1, topic(), Line::V07);
    let operations = writer.many(2);
    append(&mut store, &operations[..1]);
    let (topic, author, log) = (topic(), writer.author(), writer.log());
    let out = LogCommand::Dissociate { topic, author };
    assert_eq!(store.apply(AT, out), LogOutput::Done);
    assert!(read(&store, |it| reader::heights(it, topic)).is_empty());
    let refused = OutcomeRun::Refused(ChainRefused::Dissociated);
    assert_eq!(append(&mut store, &operations), [held(0, 1), refused]);
    let other = Topic::named("dogs").log_id();
    let associate = |log| LogCommand::Associate { topic, author, log };
    let refused = LogOutput::Refused(LogRefused::OtherLog);
    assert_eq!(store.apply(AT, associate(other)), refused);
    assert_eq!(store.apply(AT, associate(log)), LogOutput::Done);
    assert_eq!(
        append(&mut store, &operations),
        [held(0, 1), appended(1, 1)]
    );
    assert_eq!(read(&store, |it| reader::heights(it, topic)).len(), 1);
}

#[test]
fn a_restored_store_goes_on_as_the_other_and_writes_the_same_bytes() {
    let bytes = |store: &LogStore| {
        let mut bytes = Vec::new();
        store.snapshot().write_to(&mut bytes).expect("memory");
        bytes
    };
    let mut store = opened(Line::V06);
    let mut writer = Writer::new(1, topic(), Line::V06);
    append(&mut store, &writer.many(9));
    append(&mut store, [&writer.prune("flag")]);
    let snapshot = bytes(&store);
    let mut other = opened(Line::V07);
    append(
        &mut other,
        [&Writer::new(3, topic(), Line::V07).next("gone")],
    );
    other
        .restore(SnapshotReader::new(&mut &snapshot[..]))
        .expect("a snapshot");
    assert_eq!(bytes(&other), snapshot);
    let more = writer.many(3);
    assert_eq!(append(&mut store, &more), append(&mut other, &more));
    assert_eq!(bytes(&other), bytes(&store));
}

#[test]
fn commands_and_outputs_are_frozen() {
    let frozen = |command: &LogCommand, wanted: &str| {
        let encoded = crate::machine::encode(command).expect("it encodes");
        assert_eq!(data_encoding::HEXLOWER.encode(&encoded), wanted);
        let decoded: LogCommand = crate::machine::decode(&encoded).expect("it decodes");
        assert_eq!(&decoded, command);
    };
    let topic = Topic::from_bytes([1; 32]);
    let author = Author::from_bytes([2; 32]);
    let log = LogId::from_bytes([3; 32]);
    let (one, two, three) = ("01".repeat(32), "02".repeat(32), "03".repeat(32));
    let line = Line::V07;
    frozen(
        &LogCommand::OpenTopic { topic, line },
        &format!("00{one}01"),
    );
    frozen(&LogCommand::CloseTopic { topic }, &format!("01{one}"));
    let header = Bytes::from_static(b"\xaa\xbb");
    let operations = vec![
        RawOperation {
            header: header.clone(),
            body: None,
        },
        RawOperation {
            header,
            body: Some("c".into()),
        },
    ];
    let command = LogCommand::Append { topic, operations };
    frozen(&command, &format!("02{one}0202aabb0002aabb010163"));
    let command = LogCommand::Associate { topic, author, log };
    frozen(&command, &format!("03{one}{two}{three}"));
    let command = LogCommand::Dissociate { topic, author };
    frozen(&command, &format!("04{one}{two}"));
    let below = 300;
    let command = LogCommand::Prune { author, log, below };
    frozen(&command, &format!("05{two}{three}ac02"));
    frozen(&LogCommand::Sweep, "06");
}

#[test]
fn outputs_are_frozen_and_small() {
    let frozen = |output: LogOutput, wanted: &str| {
        let encoded = crate::machine::encode(&output).expect("it encodes");
        assert_eq!(data_encoding::HEXLOWER.encode(&encoded), wanted);
        let decoded: LogOutput = crate::machine::decode(&encoded).expect("it decodes");
        assert_eq!(decoded, output);
    };
    let id = crate::log_store::OperationId::from_bytes([4; 32]);
    let four = "04".repeat(32);
    frozen(LogOutput::Done, "00");
    let runs = vec![appended(300, 1_024), held(7, 1)];
    frozen(
        LogOutput::Appended(runs),
        "010200ac02800801 0701".replace(' ', "").as_str(),
    );
    for (refused, wanted) in [
        (ChainRefused::Malformed, "00".into()),
        (ChainRefused::OtherLog, "01".into()),
        (ChainRefused::Dissociated, "02".into()),
        (ChainRefused::Gap { next: 5 }, "0305".into()),
        (ChainRefused::Backlink { last: id }, format!("04{four}")),
        (ChainRefused::Fork { held: id }, format!("05{four}")),
        (ChainRefused::Pruned { first: 6 }, "0606".into()),
        (ChainRefused::LogFull, "07".into()),
    ] {
        let runs = vec![OutcomeRun::Refused(refused)];
        frozen(LogOutput::Appended(runs), &format!("010102{wanted}"));
    }
    let pruned = LogOutput::Pruned {
        operations: 1,
        bytes: 2,
        left: true,
    };
    frozen(pruned, "02010201");
    frozen(LogOutput::Swept { left: false }, "0300");
    frozen(LogOutput::Refused(LogRefused::NotOpen), "0400");
    let line = Line::V06;
    frozen(LogOutput::Refused(LogRefused::OtherLine { line }), "040100");
    frozen(LogOutput::Refused(LogRefused::OtherLog), "0402");
    frozen(LogOutput::Refused(LogRefused::TooMany), "0403");
}

/// What a topic is that has so many authors, as the table says it.
fn with_authors(count: u32) -> LogStore {
    let store = opened(Line::V07);
    store.put_authors(topic(), count);
    store
}

fn too_many() -> Vec<OutcomeRun> {
    vec![OutcomeRun::Refused(ChainRefused::TooManyAuthors)]
}

#[test]
fn authors_beyond_the_limit_are_refused_and_the_others_go_on() {
    let mut store = with_authors(TOPIC_AUTHORS_MAX - 1);
    let mut last = Writer::new(1, topic(), Line::V07);
    let mut more = Writer::new(2, topic(), Line::V07);
    assert_eq!(append(&mut store, &last.many(2)), [appended(0, 2)]);
    let first = more.next("one too many");
    assert_eq!(append(&mut store, [&first]), too_many());
    // Also behind a gap, or its sender would send what is before it.
    assert_eq!(append(&mut store, [&more.next("behind")]), too_many());
    assert_eq!(append(&mut store, [&more.prune("flagged")]), too_many());
    assert_eq!(append(&mut store, &last.many(2)), [appended(2, 2)]);
    assert_eq!(store.authors(topic()), TOPIC_AUTHORS_MAX);
}

#[test]
fn taking_an_author_out_makes_room() {
    let mut store = with_authors(TOPIC_AUTHORS_MAX - 1);
    let (topic, log) = (topic(), topic().log_id());
    let mut writer = Writer::new(1, topic, Line::V07);
    let author = writer.author();
    append(&mut store, [&writer.next("a")]);
    let dissociate = LogCommand::Dissociate { topic, author };
    assert_eq!(store.apply(AT, dissociate.clone()), LogOutput::Done);
    assert_eq!(store.apply(AT, dissociate), LogOutput::Done, "counted once");
    assert_eq!(store.authors(topic), TOPIC_AUTHORS_MAX - 1);
    let mut other = Writer::new(2, topic, Line::V07);
    assert_eq!(append(&mut store, [&other.next("a")]), [appended(1, 1)]);
    let associate = LogCommand::Associate { topic, author, log };
    let refused = LogOutput::Refused(LogRefused::TooManyAuthors);
    assert_eq!(store.apply(AT, associate.clone()), refused);
    let author = other.author();
    store.apply(AT, LogCommand::Dissociate { topic, author });
    assert_eq!(store.apply(AT, associate), LogOutput::Done);
    assert_eq!(append(&mut store, [&writer.next("b")]), [appended(2, 1)]);
}

#[test]
fn authors_of_a_store_from_before_the_limit_are_counted() {
    let mut store = opened(Line::V07);
    for number in 1..=3 {
        append(
            &mut store,
            [&Writer::new(number, topic(), Line::V07).next("a")],
        );
    }
    store.table.delete(&table::authors_key(topic().log_id()));
    let author = Writer::new(3, topic(), Line::V07).author();
    let topic = topic();
    store.apply(AT, LogCommand::Dissociate { topic, author });
    assert_eq!(store.authors(topic), 2);
    append(&mut store, [&Writer::new(4, topic, Line::V07).next("a")]);
    assert_eq!(store.authors(topic), 3);
}

#[test]
fn refusals_that_were_written_before_keep_their_bytes() {
    let bytes = |refused: &ChainRefused| postcard::to_stdvec(refused).expect("it is plain data");
    assert_eq!(bytes(&ChainRefused::LogFull), [7]);
    assert_eq!(bytes(&ChainRefused::TooManyAuthors), [8]);
    let bytes = |refused: &LogRefused| postcard::to_stdvec(refused).expect("it is plain data");
    assert_eq!(bytes(&LogRefused::TooMany), [3]);
    assert_eq!(bytes(&LogRefused::TooManyAuthors), [4]);
}
