//! Commands: their order, their limits, and what dropping a future or a handle does not do.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, future::join_all};
use quorate::{
    ExecuteError, Group, Map, MapCommand, MapOutput, NotApplied, Position, QueryError,
    config::Config,
};

use crate::{
    cluster::{Member, Place, group_at, group_of, settled, views, within},
    ledger::{Entries, Ledger, assert_equal},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_through_all_members_stand_in_one_gapless_order() {
    let members = group_of::<Ledger>(3).await;
    let term = members[0].group.status().term;
    for member in &members {
        // Opens the member's session, which takes an entry of the journal.
        let warm = member.group.execute("warm".into());
        within("a first write", warm).await.expect("written");
    }
    let writers = members.iter().enumerate().map(|(who, member)| {
        let group = member.group.clone();
        tokio::spawn(async move {
            let writes = (0..300).map(|n| {
                let command = format!("{who}/{n}");
                let executed = group.execute_at(command.clone());
                async move { (executed.await.expect("written"), command) }
            });
            join_all(writes).await
        })
    });
    let mut written: Vec<((Position, u64), String)> = Vec::new();
    for writer in within("all writes", join_all(writers)).await {
        written.extend(writer.expect("no panic"));
    }
    let views = views(&members).await;
    assert_equal(&views);
    let entries = &views[0];
    assert_eq!(entries.len(), 903);
    for member in &members {
        let (through, view) = member.group.view();
        assert!(
            written.iter().all(|((at, _), _)| *at <= through),
            "a view without its position"
        );
        assert_eq!(view.len(), 903);
    }
    for ((at, place), command) in written {
        let (applied_at, there) = &entries[usize::try_from(place).expect("small")];
        assert_eq!(
            (&at, &command),
            (applied_at, there),
            "what its writer was told"
        );
    }
    assert_eq!(
        members[0].group.status().term,
        term,
        "the leader changed: nothing is shown"
    );
    let indices: Vec<u64> = entries.iter().skip(2).map(|(at, _)| at.index).collect();
    let gap = indices.windows(2).find(|it| it[1] > it[0] + 1);
    assert_eq!(
        gap, None,
        "an entry of the journal between them holds no command"
    );
    println!(
        "903 commands in {} entries",
        indices.last().expect("some") - indices[0] + 1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_from_a_follower_keep_their_order() {
    let members = group_of::<Ledger>(3).await;
    let follower = (settled(&members).await + 1) % 3;
    let commands: Vec<String> = (0..5_000).map(|n| format!("{n}")).collect();
    let outputs = members[follower]
        .group
        .execute_many(commands.clone())
        .collect::<Vec<_>>();
    let outputs = within("all outputs", outputs).await;
    for (number, output) in outputs.into_iter().enumerate() {
        assert_eq!(output.expect("written"), number as u64);
    }
    let views = views(&members).await;
    assert_equal(&views);
    assert!(views[0].iter().map(|(_, command)| command).eq(&commands));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_are_send_and_outlive_the_handle() {
    fn movable<T: Send + 'static>(it: T) -> T {
        it
    }
    let member = Member::<Map>::found(Place::MEMORY, &Config::default()).await;
    let group: Group<Map> = member.group.clone();
    let write = movable(group.execute(MapCommand::put("a", "1")));
    let write_at = movable(group.execute_at(MapCommand::put("b", "1")));
    let many = movable(group.execute_many([MapCommand::put("c", "1")]));
    let read = movable(group.query(quorate::MapQuery::get("a")));
    drop(group);
    drop(member.group);
    let all = tokio::spawn(async move {
        write.await.expect("written");
        write_at.await.expect("written");
        let output = many.collect::<Vec<_>>().await.pop().expect("one");
        assert_eq!(output.expect("written"), MapOutput::Previous(None));
        read.await.expect("read").into_value()
    });
    let value = within("the futures end", all).await.expect("no panic");
    assert_eq!(value.as_deref(), Some(&b"1"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_future_does_not_cancel_the_command() {
    let members = group_of::<Ledger>(3).await;
    let follower = (settled(&members).await + 1) % 3;
    for (member, name) in [(0, "by the founder"), (follower, "by a follower")] {
        let group = &members[member].group;
        let mut executing = Box::pin(group.execute(name.into()));
        // Polled once: the command is handed in. (If this thread then had to wait for a core, it
        // may even be answered already.)
        let _ = (&mut executing).now_or_never();
        drop(executing);
        let applied = async {
            while !group
                .query(())
                .await
                .expect("read")
                .iter()
                .any(|(_, it)| it == name)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the command is applied all the same", applied).await;
    }
    assert_equal(&views(&members).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_all_handles_does_not_stop_the_group() {
    let mut members = group_of::<Ledger>(3).await;
    let (first, rest) = (members.remove(0), members);
    let [second, third] = <[Member<Ledger>; 2]>::try_from(rest)
        .ok()
        .expect("two are left");
    let Member { node, group, .. } = third;
    let id = group.id();
    drop(group);
    assert_eq!(node.groups(), vec![id]);
    // With the second down the quorum needs the third, whose handles are gone.
    second.node.shutdown().await;
    let writing = first.group.execute("with the third's vote".into());
    within("a write", writing).await.expect("written");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_too_large_is_refused_before_anything_is_proposed() {
    let config = Config {
        command_bytes_max: 1_000,
        ..Config::default()
    };
    let members = group_at::<Ledger>(vec![Place::MEMORY; 3], &config).await;
    for member in &members {
        within("a write", member.group.execute("warm".into()))
            .await
            .expect("written");
    }
    views(&members).await;
    // What is applied, not the status: that is told a little later.
    let before = members[0].group.view().0;
    // Two bytes of length in front of the text.
    for member in &members {
        let refused = member.group.execute("x".repeat(999)).await;
        match refused {
            Err(ExecuteError::NotApplied(NotApplied::TooLarge {
                bytes: 1_001,
                max: 1_000,
            })) => {}
            other => panic!("{other:?}"),
        }
    }
    views(&members).await;
    assert_eq!(members[0].group.view().0, before, "something was proposed");
    for member in &members {
        let largest = member.group.execute("x".repeat(998));
        within("the largest", largest)
            .await
            .expect("just small enough");
    }
    let mixed = ["a".to_owned(), "x".repeat(2_000), "b".to_owned()];
    let results = members[1].group.execute_many(mixed).collect::<Vec<_>>();
    let results = within("a mixed batch", results).await;
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    let error = results[1].as_ref().expect_err("too large").to_string();
    assert!(error.contains("2002") && error.contains("1000"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_group_says_so_and_leaves_no_task_behind() {
    let runtime = tokio::runtime::Handle::current();
    let before = runtime.metrics().num_alive_tasks();
    let members = group_of::<Ledger>(3).await;
    within("a write", members[0].group.execute("a".into()))
        .await
        .expect("written");
    let started = std::time::Instant::now();
    for member in &members {
        within("a shutdown", member.node.shutdown()).await;
    }
    println!("three shutdowns took {:?}", started.elapsed());
    for member in &members {
        let refused = member.group.execute("b".into()).await;
        assert!(
            matches!(refused, Err(ExecuteError::Stopped(_))),
            "{refused:?}"
        );
        let error = refused.expect_err("stopped").to_string();
        assert!(error.contains("shut down"), "{error}");
        let many = member
            .group
            .execute_many(["c".to_owned()])
            .collect::<Vec<_>>()
            .await;
        assert!(
            matches!(many[..], [Err(ExecuteError::Stopped(_))]),
            "{many:?}"
        );
        let unread = member.group.query(()).await;
        assert!(matches!(unread, Err(QueryError::Stopped(_))), "{unread:?}");
        assert!(member.group.ready().await.is_err());
        // What was applied stays readable while a handle is held.
        let held: Entries = member.group.query_local(());
        assert_eq!(held.len(), 1);
        within("a second shutdown does nothing", member.node.shutdown()).await;
    }
    let quiet = async {
        while runtime.metrics().num_alive_tasks() > before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(5), quiet)
        .await
        .is_err()
    {
        panic!(
            "{} tasks are left",
            runtime.metrics().num_alive_tasks() - before
        );
    }
}
