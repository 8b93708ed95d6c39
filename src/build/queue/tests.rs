//! Promises of the queue, in small cases; `tests/order.rs` holds them for thousands of requests.

use super::*;

const GRACE: Duration = Duration::from_secs(60);
const NOW: Duration = Duration::from_secs(1000);

/// A queue with a planned request for each list of derivations; in a list, each one needs the one before it.
fn queue(requests: &[&[u32]]) -> (Queue<u32>, Vec<RequestId>) {
    let mut queue = Queue::default();
    let ids = requests.iter().map(|chain| ask(&mut queue, chain)).collect();
    (queue, ids)
}

fn ask(queue: &mut Queue<u32>, chain: &[u32]) -> RequestId {
    let (id, new) = queue.ask(chain.last().expect("something is wanted"));
    assert!(new);
    queue.plan(id, needs(chain), NOW);
    id
}

/// Starts the next build; nobody knows how long anything takes.
fn start(queue: &mut Queue<u32>) -> Option<u32> {
    queue.start(NOW, |_| None)
}

fn needs(chain: &[u32]) -> BTreeMap<u32, BTreeSet<u32>> {
    let inputs = |n: usize| n.checked_sub(1).map(|before| chain[before]).into_iter().collect();
    chain.iter().enumerate().map(|(n, drv)| (*drv, inputs(n))).collect()
}

#[test]
fn whoever_asks_first_is_built_first_inputs_before_what_needs_them() {
    let (mut queue, ids) = queue(&[&[9, 8], &[1], &[2]]);
    for (drv, complete) in [(9, vec![]), (8, vec![ids[0]]), (1, vec![ids[1]]), (2, vec![ids[2]])] {
        assert_eq!(start(&mut queue), Some(drv));
        assert_eq!(queue.built(&drv, NOW), complete);
    }
    assert!(queue.is_empty() && start(&mut queue).is_none());
}

#[test]
fn equal_requests_share_one_place() {
    let (mut queue, ids) = queue(&[&[1], &[2]]);
    assert_eq!(queue.ask(&1), (ids[0], false));
    assert_eq!(start(&mut queue), Some(1));
    assert_eq!(queue.ask(&1), (ids[0], false), "a second request joins the running build");
    assert_eq!(queue.len(), 2);
}

#[test]
fn a_shared_derivation_is_built_once_and_a_request_is_complete_the_moment_it_lacks_nothing() {
    let (mut queue, ids) = queue(&[&[1, 2, 3], &[1, 5], &[1, 2]]);
    assert_eq!((start(&mut queue), queue.built(&1, NOW)), (Some(1), vec![]));
    assert_eq!(start(&mut queue), Some(2));
    assert_eq!(queue.built(&2, NOW), vec![ids[2]], "before its turn, at no cost to anyone");
    assert_eq!((start(&mut queue), queue.built(&3, NOW)), (Some(3), vec![ids[0]]));
    assert_eq!((start(&mut queue), queue.built(&5, NOW)), (Some(5), vec![ids[1]]));
}

#[test]
fn with_several_lanes_the_oldest_request_goes_first_in_each() {
    let (mut queue, _) = queue(&[&[1, 2], &[3], &[4]]);
    assert_eq!((start(&mut queue), start(&mut queue)), (Some(1), Some(3)), "2 is not ready");
    queue.built(&1, NOW);
    assert_eq!(start(&mut queue), Some(2), "before 4, which is younger");
}

#[test]
fn nothing_younger_is_started_before_the_oldest_request_is_planned() {
    let mut queue = Queue::default();
    let (first, _) = queue.ask(&1);
    ask(&mut queue, &[2]);
    assert_eq!(start(&mut queue), None);
    queue.plan(first, needs(&[1]), NOW);
    assert_eq!(start(&mut queue), Some(1));
}

#[test]
fn a_plan_that_is_older_than_a_build_does_not_build_it_again() {
    let mut queue = Queue::default();
    ask(&mut queue, &[1]);
    let (late, _) = queue.ask(&2);
    assert_eq!(start(&mut queue), Some(1));
    queue.built(&1, NOW);
    queue.plan(late, needs(&[1, 2]), NOW);
    assert_eq!(start(&mut queue), Some(2));
    assert_eq!(queue.built(&2, NOW), vec![late]);
}

#[test]
fn a_request_that_lacks_nothing_is_complete_at_once() {
    let mut queue = Queue::default();
    let (id, _) = queue.ask(&1);
    assert!(queue.plan(id, BTreeMap::new(), NOW));
    assert!(queue.is_empty());
}

#[test]
fn a_failure_ends_those_who_need_it_and_no_one_else() {
    let (mut queue, ids) = queue(&[&[1, 2], &[1, 3], &[7]]);
    assert_eq!(start(&mut queue), Some(1));
    assert_eq!(queue.failed(&1, NOW), vec![ids[0], ids[1]]);
    assert_eq!((queue.len(), start(&mut queue)), (1, Some(7)));
    assert_eq!(queue.built(&7, NOW), vec![ids[2]]);
}

#[test]
fn what_only_a_dropped_request_needed_is_not_built_and_blocks_nobody() {
    let (mut queue, ids) = queue(&[&[1], &[5, 6, 7], &[6, 8]]);
    queue.leave(ids[1], NOW);
    assert_eq!(queue.drop_abandoned(NOW + GRACE, GRACE), vec![]);
    assert_eq!(queue.drop_abandoned(NOW + GRACE + Duration::from_millis(1), GRACE), vec![ids[1]]);
    let order: Vec<u32> =
        std::iter::from_fn(|| start(&mut queue).inspect(|drv| drop(queue.built(drv, NOW)))).collect();
    assert_eq!(order, vec![1, 6, 8]);
}

#[test]
fn a_request_with_another_client_or_with_something_built_stays() {
    let (mut queue, ids) = queue(&[&[1, 2], &[3]]);
    queue.ask(&3);
    start(&mut queue);
    queue.leave(ids[0], NOW);
    queue.leave(ids[1], NOW);
    assert_eq!(queue.drop_abandoned(NOW + 2 * GRACE, GRACE), vec![]);
}

#[test]
fn a_client_that_comes_back_within_the_grace_finds_its_place() {
    let (mut queue, ids) = queue(&[&[1], &[2]]);
    queue.leave(ids[1], NOW);
    assert_eq!(queue.ask(&2), (ids[1], false));
    assert_eq!(queue.drop_abandoned(NOW + 2 * GRACE, GRACE), vec![]);
    assert_eq!(queue.requests().collect::<Vec<_>>(), ids);
}

#[test]
fn a_build_that_nobody_needs_any_more_leaves_nothing_behind_however_it_ends() {
    for ends_well in [true, false] {
        let (mut queue, ids) = queue(&[&[1, 2]]);
        assert_eq!(start(&mut queue), Some(1));
        queue.remove(ids[0]);
        assert_eq!(start(&mut queue), None);
        let ended = if ends_well { queue.built(&1, NOW) } else { queue.failed(&1, NOW) };
        assert_eq!(ended, vec![]);
        assert!(queue.steps.is_empty() && queue.running.is_empty() && queue.built_meanwhile.is_empty());
    }
}

// Overtaking.

const SECOND: Duration = Duration::from_secs(1);

/// A queue that may overtake by ten seconds, and by a tenth of what is waited for anyway.
fn overtaking(requests: &[&[u32]]) -> (Queue<u32>, Vec<RequestId>) {
    let mut queue = Queue::new(Policy::Overtaking(Overtaking { budget: 10 * SECOND, share_percent: 10 }));
    let ids = requests.iter().map(|chain| ask(&mut queue, chain)).collect();
    (queue, ids)
}

/// Each takes as many seconds as its number says, or half as long again; from 1000 on nothing is known.
fn by_number(drvs: &BTreeSet<u32>) -> Option<Guess> {
    let known = drvs.iter().all(|drv| *drv < 1000);
    let median = SECOND * drvs.iter().sum::<u32>();
    known.then_some(Guess { median, p95: median * 3 / 2 })
}

#[test]
fn the_shortest_request_goes_first_when_everyone_can_bear_it() {
    let (mut queue, ids) = overtaking(&[&[100], &[5], &[4]]);
    assert_eq!(queue.start(NOW, by_number), Some(4));
    assert_eq!(queue.stop_at(&4), Some(NOW + 10 * SECOND));
    assert_eq!(queue.built(&4, NOW + 4 * SECOND), vec![ids[2]]);
    assert_eq!(queue.start(NOW, by_number), Some(100), "6 s are left, 5 may take 7.5 s");
    assert_eq!(queue.stop_at(&100), None);
}

#[test]
fn what_is_unknown_or_longer_than_the_oldest_never_goes_first() {
    let (mut queue, _) = overtaking(&[&[3], &[1000], &[4]]);
    assert_eq!(queue.start(NOW, by_number), Some(3));
    let (mut queue, _) = overtaking(&[&[1000], &[1001], &[4]]);
    assert_eq!(queue.start(NOW, by_number), Some(4), "before one of which nothing is known");
}

#[test]
fn time_spent_on_what_is_waited_for_anyway_earns_more() {
    let (mut queue, _) = overtaking(&[&[200, 300], &[4], &[6]]);
    assert_eq!(queue.start(NOW, by_number), Some(4));
    queue.built(&4, NOW + 5 * SECOND);
    assert_eq!(queue.start(NOW + 5 * SECOND, by_number), Some(200), "5 s are left, 6 may take 9 s");
    queue.built(&200, NOW + 205 * SECOND);
    assert_eq!(queue.start(NOW + 205 * SECOND, by_number), Some(6), "the oldest can bear 25 s by now");
    assert_eq!(queue.stop_at(&6), Some(NOW + 215 * SECOND), "but one that comes meanwhile only 10 s");
}

#[test]
fn a_build_that_was_stopped_costs_everyone_and_waits_for_its_turn() {
    let (mut queue, ids) = overtaking(&[&[100], &[4], &[6]]);
    assert_eq!(queue.start(NOW, by_number), Some(4));
    queue.stopped(&4, NOW + 9 * SECOND);
    assert_eq!(queue.start(NOW, by_number), Some(100), "nothing fits into one second");
    queue.built(&100, NOW + 109 * SECOND);
    assert_eq!(queue.start(NOW, by_number), Some(4));
    assert_eq!(queue.stop_at(&4), None, "it is the oldest now");
    assert_eq!(queue.built(&4, NOW + 120 * SECOND), vec![ids[1]]);
}

#[test]
fn a_request_that_comes_while_another_overtakes_can_bear_that_it_is_stopped_in_time() {
    let (mut queue, _) = overtaking(&[&[200, 300], &[3], &[4]]);
    assert_eq!(queue.start(NOW, by_number), Some(3));
    assert_eq!(queue.stop_at(&3), Some(NOW + 10 * SECOND));
    queue.built(&3, NOW + 3 * SECOND);
    assert_eq!(queue.start(NOW + 3 * SECOND, by_number), Some(4));
    assert_eq!(queue.stop_at(&4), Some(NOW + 10 * SECOND), "the oldest can bear 7 s more");
    let (late, _) = queue.ask(&7);
    queue.plan(late, needs(&[7]), NOW + 5 * SECOND);
    assert_eq!(queue.stop_at(&4), Some(NOW + 10 * SECOND), "one that can bear more changes nothing");
}

#[test]
fn work_that_is_done_again_earns_nothing_for_those_who_counted_on_its_end() {
    let (mut queue, _) = overtaking(&[&[200], &[6]]);
    assert_eq!(queue.start(NOW, by_number), Some(6));
    let (late, _) = queue.ask(&7);
    queue.plan(late, needs(&[7]), NOW + 5 * SECOND);
    queue.stopped(&6, NOW + 9 * SECOND);
    // The 5 s before it came are none of its backlog.
    assert_eq!(queue.requests[&late].account.charged, 9 * SECOND + 5 * SECOND / 10);
}

#[test]
fn work_inherited_from_a_request_that_left_is_not_charged() {
    let (mut queue, ids) = overtaking(&[&[50, 60], &[3, 4], &[50]]);
    assert_eq!(queue.requests[&ids[2]].account.due_owner, Some(ids[0]));
    queue.remove(ids[0]);
    assert_eq!(queue.start(NOW, by_number), Some(3));
    queue.built(&3, NOW + 3 * SECOND);
    let account = queue.requests[&ids[2]].account;
    assert_eq!((account.charged, account.earned), (Duration::ZERO, 3 * SECOND));
}

// The background lane.

#[test]
fn the_background_lane_takes_the_shortest_and_the_main_lane_stays_with_the_oldest() {
    let mut queue = Queue::new(Policy::Background);
    let ids: Vec<_> =
        [&[100, 101][..], &[50], &[1000], &[3]].map(|chain| ask(&mut queue, chain)).into_iter().collect();
    assert_eq!(queue.start(NOW, by_number), Some(100));
    assert_eq!(queue.start_in_background(NOW, by_number), Some(3));
    assert_eq!(queue.built(&3, NOW), vec![ids[3]]);
    assert_eq!(queue.start_in_background(NOW, by_number), Some(50));
    queue.built(&100, NOW);
    assert_eq!(queue.start(NOW, by_number), Some(101));
    assert_eq!(queue.built(&101, NOW), vec![ids[0]]);
    assert_eq!(
        queue.start(NOW, by_number),
        None,
        "the oldest is being built in the background, at full speed now"
    );
    assert_eq!(queue.start_in_background(NOW, by_number), Some(1000), "there is a lane free in this test");
    assert_eq!(queue.stop_at(&50), None);
    assert_eq!(queue.built(&50, NOW), vec![ids[1]]);
}

// Pre-building.

const UNTIL: Duration = Duration::from_secs(5000);

/// A queue that pre-builds derivation 1.
fn prebuilding(policy: Policy) -> Queue<u32> {
    let mut queue = Queue::new(policy);
    assert!(queue.prebuild(&1, NOW, UNTIL));
    assert_eq!(queue.stop_at(&1), Some(UNTIL));
    queue
}

#[test]
fn nothing_is_prebuilt_while_anyone_waits_or_anything_runs() {
    let (mut queue, ids) = queue(&[&[1, 2]]);
    assert!(!queue.prebuild(&9, NOW, UNTIL));
    assert_eq!(start(&mut queue), Some(1));
    queue.remove(ids[0]);
    assert!(!queue.prebuild(&9, NOW, UNTIL), "what a request has left behind still runs");
    queue.built(&1, NOW);
    assert!(queue.prebuild(&9, NOW, UNTIL));
    assert!(!queue.prebuild(&8, NOW, UNTIL));
    assert_eq!((start(&mut queue), queue.built(&9, NOW)), (None, vec![]));
    assert!(queue.steps.is_empty() && queue.running.is_empty() && queue.built_meanwhile.is_empty());
}

#[test]
fn a_request_takes_over_what_is_prebuilt_of_its_closure() {
    let mut queue = prebuilding(Policy::Strict);
    let id = ask(&mut queue, &[1, 2]);
    assert_eq!((queue.stop_at(&1), start(&mut queue)), (None, None));
    ask(&mut queue, &[5]);
    assert_eq!(queue.stop_at(&1), None, "it is the oldest request's");
    queue.leave(id, NOW);
    assert_eq!(queue.drop_abandoned(NOW + 2 * GRACE, GRACE), vec![], "something is being built for it");
    assert_eq!((queue.built(&1, NOW), start(&mut queue)), (vec![], Some(2)));
    assert_eq!(queue.built(&2, NOW), vec![id]);
}

#[test]
fn what_is_prebuilt_stops_at_once_for_a_request_that_needs_something_else() {
    let mut queue = prebuilding(Policy::Strict);
    let (id, _) = queue.ask(&5);
    assert_eq!(queue.stop_at(&1), Some(UNTIL), "nobody knows yet what it needs");
    queue.plan(id, needs(&[5]), NOW + SECOND);
    assert!(queue.stop_at(&1).is_some_and(|at| at <= NOW + SECOND));
    queue.stopped(&1, NOW + SECOND);
    assert_eq!((start(&mut queue), queue.built(&5, NOW)), (Some(5), vec![id]));
    assert!(queue.steps.is_empty() && queue.running.is_empty());
}

#[test]
fn what_is_prebuilt_goes_on_for_a_request_that_lacks_nothing_and_not_for_one_behind_another() {
    let mut queue = prebuilding(Policy::Strict);
    let (id, _) = queue.ask(&5);
    assert!(queue.plan(id, BTreeMap::new(), NOW));
    assert_eq!(queue.stop_at(&1), Some(UNTIL));
    let (first, second) = (queue.ask(&5).0, queue.ask(&1).0);
    queue.plan(second, needs(&[1]), NOW);
    assert_eq!(queue.stop_at(&1), Some(NOW), "the first one may need something else");
    queue.stopped(&1, NOW);
    queue.plan(first, needs(&[5]), NOW);
    assert_eq!((start(&mut queue), queue.built(&5, NOW)), (Some(5), vec![first]));
    assert_eq!((start(&mut queue), queue.built(&1, NOW)), (Some(1), vec![second]));
}

#[test]
fn what_was_prebuilt_while_a_request_was_planned_is_not_built_again() {
    let mut queue = prebuilding(Policy::Strict);
    let (id, _) = queue.ask(&2);
    assert_eq!(queue.built(&1, NOW), vec![]);
    queue.plan(id, needs(&[1, 2]), NOW);
    assert_eq!((start(&mut queue), queue.built(&2, NOW)), (Some(2), vec![id]));
}

#[test]
fn a_prebuilt_derivation_that_fails_ends_those_who_need_it_by_then() {
    let mut queue = prebuilding(Policy::Strict);
    assert_eq!(queue.failed(&1, NOW), vec![]);
    let mut queue = prebuilding(Policy::Strict);
    let id = ask(&mut queue, &[1, 2]);
    assert_eq!(queue.failed(&1, NOW), vec![id]);
    assert!(queue.steps.is_empty() && queue.running.is_empty());
}

#[test]
fn prebuilding_is_charged_to_nobody_and_earns_what_was_done_since_it_was_taken_over() {
    let policy = Policy::Overtaking(Overtaking { budget: 10 * SECOND, share_percent: 10 });
    for (chain, ends_well) in [([5, 6], false), ([1, 2], true)] {
        let mut queue = prebuilding(policy);
        let (id, _) = queue.ask(&chain[1]);
        queue.plan(id, needs(&chain), NOW + 50 * SECOND);
        let account = |queue: &Queue<u32>| queue.requests[&id].account;
        if ends_well {
            queue.built(&1, NOW + 70 * SECOND);
            assert_eq!((account(&queue).charged, account(&queue).earned), (Duration::ZERO, 20 * SECOND));
        } else {
            queue.stopped(&1, NOW + 51 * SECOND);
            assert_eq!((account(&queue).charged, account(&queue).earned), (Duration::ZERO, Duration::ZERO));
        }
    }
}

// Restarts.

/// The queue as it comes back from what was saved.
fn restarted(queue: &mut Queue<u32>, now: Duration) -> Queue<u32> {
    let mut back = Queue::new(queue.policy);
    for (_, saved) in queue.take_changed() {
        if let Some(saved) = saved {
            back.restore(saved, now);
        }
    }
    back
}

#[test]
fn after_a_restart_requests_have_their_old_places_and_accounts() {
    let (mut queue, ids) = overtaking(&[&[100], &[4], &[200]]);
    assert_eq!(queue.start(NOW, by_number), Some(4));
    queue.stopped(&4, NOW + 9 * SECOND);
    let mut back = restarted(&mut queue, NOW);
    assert_eq!(back.start(NOW, by_number), None, "nothing is planned yet");
    for (id, drv) in ids.iter().zip([100, 4, 200]) {
        assert!(!back.plan(*id, needs(&[drv]), NOW));
        assert_eq!(back.requests[id].account.charged, 9 * SECOND);
    }
    assert_eq!(back.start(NOW, by_number), Some(100));
    let (new, _) = back.ask(&5);
    assert!(new > ids[2]);
    assert_eq!(back.ask(&4), (ids[1], false), "a client that comes back finds its request");
}

#[test]
fn after_a_restart_what_nobody_comes_back_for_leaves_unless_it_was_begun() {
    let (mut queue, ids) = queue(&[&[1, 2], &[3]]);
    start(&mut queue);
    let mut back = restarted(&mut queue, NOW);
    for (id, drv) in ids.iter().zip([2, 3]) {
        back.plan(*id, needs(&[drv]), NOW);
    }
    assert_eq!(back.drop_abandoned(NOW + 2 * GRACE, GRACE), vec![ids[1]]);
}

#[test]
fn only_what_changed_is_saved_again() {
    let (mut queue, ids) = queue(&[&[1, 2], &[3]]);
    let changed = |queue: &mut Queue<u32>| -> Vec<_> {
        queue.take_changed().into_iter().map(|(id, saved)| (id, saved.map(|saved| saved.started))).collect()
    };
    assert_eq!(changed(&mut queue), [(ids[0], Some(false)), (ids[1], Some(false))]);
    assert_eq!(changed(&mut queue), []);
    start(&mut queue);
    assert_eq!(changed(&mut queue), [(ids[0], Some(true))]);
    queue.built(&1, NOW);
    assert_eq!(changed(&mut queue), []);
    start(&mut queue);
    queue.built(&2, NOW);
    assert_eq!(changed(&mut queue), [(ids[0], None)]);
}

#[test]
fn a_request_that_was_complete_and_is_not_has_its_place_and_its_clients_again() {
    let mut queue = Queue::default();
    let [first, second] = ["first", "second"].map(|wanted| queue.ask(&wanted).0);
    assert!(queue.plan(first, BTreeMap::new(), Duration::ZERO), "it lacks nothing");
    assert!(queue.put_back(first, &"first", 2));
    assert!(!queue.put_back(first, &"first", 2), "it is there");
    assert_eq!(queue.requests().collect::<Vec<_>>(), [first, second]);
    assert_eq!(queue.clients(first), 2);
    assert_eq!(queue.ask(&"first"), (first, false));
    assert!(!queue.plan(first, BTreeMap::from([("first", BTreeSet::new())]), Duration::ZERO));
    queue.remove(first);
    let again = queue.ask(&"first").0;
    assert!(!queue.put_back(first, &"first", 2), "somebody asked for it anew");
    assert!(again > second);
}
