use super::*;

fn after(state: &Arc<State>) -> Arc<State> {
    use std::os::fd::AsFd;
    Arc::new(State::take_over(state.fd().as_fd().try_clone_to_owned().unwrap()).unwrap())
}

/// The thread dies.
fn die() {
    std::mem::forget(CURRENT.take());
}

#[test]
fn what_was_begun_is_known_when_it_comes_again() {
    let state = Arc::new(State::create().unwrap());
    let work = Work::new(Some(state.clone()), true);
    work.begin(2, 1).unwrap();
    work.intend(|| Intent::Attribute);
    let intent = Intent::Make(b"d/f".to_vec());
    work.begin(4, 1).unwrap();
    work.intend(|| intent.clone());
    die();
    work.begin(6, 2).unwrap();
    die();

    let state = after(&state);
    let work = Work::new(Some(state.clone()), true);
    let mut seen = Vec::new();
    work.take_over(|intent| {
        seen.push(intent.clone());
        Outcome::Done
    });
    assert_eq!(seen, [intent]);
    assert!(work.suspects());
    work.begin(4 | RESENT, 1).unwrap();
    assert!(is_done() && was_begun() && unique() == 4);
    work.begin(8 | RESENT, 1).unwrap();
    assert!(!is_done() && !was_begun() && unique() == 8, "it waited for a thread");
    work.begin(6 | RESENT, 1).unwrap();
    assert!(!is_done() && was_begun(), "nothing was intended");
    die();

    let state = after(&state);
    let work = Work::new(Some(state.clone()), true);
    work.take_over(|_| unreachable!("the one with an intent was answered"));
    work.begin(6 | RESENT, 1).unwrap();
    assert!(was_begun());
    // Killed once more before it was read.
    die();
    let state = after(&state);
    let state = after(&state);
    let work = Work::new(Some(state.clone()), false);
    work.take_over(|_| unreachable!());
    assert!(work.suspects(), "it may still come");
    work.begin(6 | RESENT, 1).unwrap();
    assert!(was_begun());
    drop(CURRENT.take());
    let work = Work::new(Some(after(&state)), false);
    work.take_over(|_| unreachable!());
    assert!(!work.suspects(), "it was answered");
}

#[test]
fn what_is_never_sent_again_is_forgotten() {
    let state = Arc::new(State::create().unwrap());
    Work::new(Some(state.clone()), true).begin(2, 1).unwrap();
    die();
    let state = after(&state);
    let mut work = Work::new(Some(state.clone()), true);
    work.take_over(|_| Outcome::Open);
    assert_eq!(state.work.lock().len(), WORK_RECORDS - 1);
    work.since = Instant::now().checked_sub(LONG).unwrap();
    (0..=MANY as u64).for_each(|n| work.begin(100 + n * 2, 1).unwrap());
    assert!(!work.suspects());
    drop(CURRENT.take());
    assert_eq!(state.work.lock().len(), WORK_RECORDS);
}

#[test]
fn daemons_that_are_killed_early_take_no_records_for_ever() {
    let mut state = Arc::new(State::create().unwrap());
    for n in 1..2000 {
        let work = Work::new(Some(state.clone()), false);
        work.take_over(|_| Outcome::Open);
        assert!(state.work.lock().len() + PASSED_ON as usize + 2 >= WORK_RECORDS, "after {n}");
        work.begin(2 * n, 1).unwrap();
        die();
        state = after(&state);
    }
    // One that comes late is known.
    for _ in 0..PASSED_ON - 1 {
        Work::new(Some(state.clone()), false).take_over(|_| Outcome::Open);
        state = after(&state);
    }
    let work = Work::new(Some(state.clone()), false);
    work.take_over(|_| Outcome::Open);
    work.begin((2 * 1999) | RESENT, 1).unwrap();
    assert!(was_begun());
    drop(CURRENT.take());
}

#[test]
fn a_request_that_kills_three_is_not_tried_again() {
    let mut state = Arc::new(State::create().unwrap());
    for deaths in 0..4 {
        let work = Work::new(Some(state.clone()), true);
        work.take_over(|_| Outcome::Open);
        let unique = if deaths == 0 { 2 } else { 2 | RESENT };
        assert_eq!(work.begin(unique, 1).is_err(), deaths == 3, "after {deaths}");
        die();
        state = after(&state);
    }
}

#[test]
fn who_was_merely_there_is_not_taken_for_it() {
    let mut state = Arc::new(State::create().unwrap());
    let (deadly, innocent) = (2, 4);
    for deaths in 0..4 {
        let mut work = Work::new(Some(state.clone()), true);
        work.suspects.patience = Duration::from_secs(1000);
        work.take_over(|_| Outcome::Open);
        let work = Arc::new(work);
        let again = if deaths == 0 { 0 } else { RESENT };
        assert_eq!(work.begin(deadly | again, 1).is_err(), deaths == 3, "after {deaths}");
        // It comes while the other is served.
        let beside = work.clone();
        let other = std::thread::spawn(move || {
            let begun = beside.begin(innocent | again, 1);
            std::mem::forget(CURRENT.take());
            begun.is_ok()
        });
        if deaths == 0 {
            assert!(other.join().unwrap());
        } else if deaths == 3 {
            work.served();
            assert!(other.join().unwrap(), "it was never at work when another died");
        }
        die();
        state = after(&state);
    }
}

#[test]
fn more_threads_than_there_are_records_for() {
    let work = &Work::new(Some(Arc::new(State::create().unwrap())), true);
    let all = &std::sync::Barrier::new(WORK_RECORDS + 10);
    std::thread::scope(|scope| {
        for n in 1..=WORK_RECORDS as u64 + 10 {
            scope.spawn(move || {
                work.begin(n * 2, 1).unwrap();
                work.intend(|| Intent::Attribute);
                all.wait();
            });
        }
    });
    // A thread has ended a moment before what was its own is given back.
    let given_back = || work.state.as_ref().unwrap().work.lock().len();
    while given_back() < WORK_RECORDS {
        std::thread::yield_now();
    }
    let work = Work::new(None, true);
    work.begin(2, 1).unwrap();
    work.intend(|| unreachable!("nothing is kept"));
}
