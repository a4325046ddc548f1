//! However many dial at once, one link and one bond are left.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_of_three_closes_from_one_address() {
    let key = GroupKey::generate();
    let one = Member::start(&key, vec![]).await;
    let two = Member::start(&key, vec![one.addr()]).await;
    let three = Member::start(&key, vec![one.addr()]).await;
    let all = [&one, &two, &three];
    for me in all {
        for other in all {
            if me.peer() != other.peer() {
                me.bonded(other).await;
            }
        }
    }
    for me in all {
        assert_eq!(me.mesh.bonds().len(), 2);
        assert_eq!(me.mesh.roster().len(), 3);
    }
    for me in all {
        me.shut().await;
    }
}

/// Both open the group knowing each other: both dial at the same instant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_dial_at_once_end_with_one_link_and_one_bond() {
    for _ in 0..50 {
        let key = GroupKey::generate();
        let (left, right) = tokio::join!(Node::start(CALM), Node::start(CALM));
        let (to_left, to_right) = (left.addr(), right.addr());
        let left = Member::on(left, &key, vec![to_right]);
        let right = Member::on(right, &key, vec![to_left]);
        left.bonded(&right).await;
        right.bonded(&left).await;
        settled(&left, &right).await;
        for (me, other) in [(&left, &right), (&right, &left)] {
            me.mock.noted("formed", |notes| !notes.is_empty()).await;
            let formed = me.mock.count(|note| *note == Note::Formed(other.peer()));
            assert_eq!(formed, 1, "no flapping: {:?}", *me.mock.notes.borrow());
            assert_eq!(me.mesh.bonds().len(), 1);
        }
        tokio::join!(left.shut(), right.shut());
    }
}

/// Both nodes open many groups at once, each knowing the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_groups_share_one_link() {
    let (left, right) = tokio::join!(Node::start(CALM), Node::start(CALM));
    let mut meshes = Vec::new();
    for _ in 0..100 {
        let key = GroupKey::generate();
        let open = |node: &Node, other: &Node| {
            let mock = Arc::new(Mock::new(MemberId::mint()));
            (node.open(&key, Arc::clone(&mock), vec![other.addr()]), mock)
        };
        meshes.push((open(&left, &right), open(&right, &left)));
    }
    for ((ours, _), (theirs, _)) in &meshes {
        soon("a bond", async {
            let (mut ours, mut theirs) = (ours.bonds(), theirs.bonds());
            while ours.is_empty() {
                ours.changed().await;
            }
            while theirs.is_empty() {
                theirs.changed().await;
            }
        })
        .await;
    }
    one_link(&left, &right).await;
    for ((ours, mock), (theirs, _)) in &meshes {
        let bond = ours.bond_with(right.peer()).expect("bonded");
        assert_eq!(
            theirs.bond_with(left.peer()).map(|bond| bond.id()),
            Some(bond.id())
        );
        mock.noted("formed", |notes| !notes.is_empty()).await;
        let formed = mock.count(|note| matches!(note, Note::Formed(_)));
        assert_eq!(formed, 1, "no flapping: {:?}", *mock.notes.borrow());
        // Every lane of every group finds room on the one link.
        for lane in [Lane::Vote, Lane::Forward] {
            let answer = bond.request(lane, Bytes::from_static(b"x")).await;
            assert_eq!(answer, Ok(Bytes::from_static(b"x")));
        }
    }
    tokio::join!(left.links.shutdown(), right.links.shutdown());
}

/// A second connection, dialled while bonds live on the first, changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_link_is_given_up_and_the_first_keeps_its_bonds() {
    let key = GroupKey::generate();
    let (one, two, ours, theirs) = pair(&key).await;
    let mut seconds = Vec::new();
    for (me, other) in [(&one, &two), (&two, &one)] {
        let dialled = me
            .node
            .links
            .transport()
            .dial(&other.addr())
            .await
            .expect("dialled");
        seconds.push(me.node.links.adopt(dialled, None).expect("adopted"));
    }
    for second in seconds {
        soon("the end of the second link", second.connection.closed()).await;
    }
    assert!(!ours.is_terminated() && !theirs.is_terminated());
    one_link(&one.node, &two.node).await;
    one.shut().await;
    two.shut().await;
}

async fn settled(left: &Member, right: &Member) {
    one_link(&left.node, &right.node).await;
    let same = || {
        let ours = left.mesh.bond_with(right.peer())?.id();
        Some(ours == right.mesh.bond_with(left.peer())?.id())
    };
    let agreed = async {
        while same() != Some(true) {
            yielded().await;
        }
    };
    soon("one bond", agreed).await;
}

async fn one_link(left: &Node, right: &Node) {
    let names = |node: &Node| -> Vec<_> {
        let links = node.links.all();
        links
            .iter()
            .filter(|link| link.is_alive())
            .map(|link| link.id)
            .collect()
    };
    let one = async {
        while names(left).len() != 1 || names(left) != names(right) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("one link", one).await;
}
