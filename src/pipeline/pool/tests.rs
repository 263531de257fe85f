use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::*;
use crate::pipeline::testing::numbers;

fn config(threads: usize, queue_bytes_max: usize, queue_jobs_max: usize) -> PoolConfig {
    PoolConfig { threads, queue_bytes_max, queue_jobs_max }
}

#[test]
fn results_come_in_the_order_of_the_jobs_whatever_thread_was_faster() {
    let pool = Arc::new(
        Pool::start(config(8, 1 << 20, 64), || {
            let mut next = numbers(std::process::id().into());
            move |job: u64| {
                // Uneven work, so that later jobs finish first.
                let spins = if job.is_multiple_of(7) { 20_000 } else { 10 };
                for _ in 0..spins {
                    std::hint::black_box(next());
                }
                job * 2
            }
        })
        .unwrap(),
    );
    let submitter = Arc::clone(&pool);
    let feeder = std::thread::spawn(move || {
        (0..5000).for_each(|job| submitter.submit(job, 100).unwrap());
        submitter.close();
    });
    for job in 0..5000 {
        assert_eq!(pool.next().unwrap(), Some(job * 2));
    }
    assert_eq!(pool.next().unwrap(), None);
    feeder.join().unwrap();
}

#[test]
fn what_is_submitted_and_not_taken_is_bounded_in_bytes_and_in_jobs() {
    for (bytes_max, jobs_max, most) in [(1000, 100, 10), (1 << 20, 5, 5)] {
        let pool = Arc::new(Pool::start(config(2, bytes_max, jobs_max), || |job: usize| job).unwrap());
        let submitted = Arc::new(AtomicUsize::new(0));
        let (submitter, count) = (Arc::clone(&pool), Arc::clone(&submitted));
        let feeder = std::thread::spawn(move || {
            for job in 0..200 {
                submitter.submit(job, 100).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
            submitter.close();
        });
        let mut taken = 0;
        while let Some(job) = pool.next().unwrap() {
            assert_eq!(job, taken);
            taken += 1;
            // One more may have been submitted after this one was taken and before the count is read, never more.
            assert!(submitted.load(Ordering::SeqCst) <= taken + most);
            assert!(pool.held_jobs() <= most && pool.held_bytes() <= most * 100);
        }
        feeder.join().unwrap();
        assert_eq!(taken, 200);
    }
}

#[test]
fn a_job_larger_than_the_queue_is_taken_alone() {
    let pool = Pool::start(config(1, 10, 10), || |job: usize| job).unwrap();
    pool.submit(1, 1000).unwrap();
    assert_eq!(pool.held_bytes(), 1000);
    assert_eq!(pool.next().unwrap(), Some(1));
    assert_eq!(pool.held_bytes(), 0);
}

#[test]
fn a_panic_in_a_worker_reaches_taker_and_submitter_instead_of_hanging_them() {
    let (go, wait) = sync_channel::<()>(1);
    let wait = Arc::new(Mutex::new(wait));
    let pool = Arc::new(
        Pool::start(config(2, 1000, 2), move || {
            let wait = Arc::clone(&wait);
            move |job: usize| {
                if job == 1 {
                    wait.lock().recv().unwrap();
                    panic!("job {job} went wrong");
                }
                job
            }
        })
        .unwrap(),
    );
    pool.submit(0, 1).unwrap();
    pool.submit(1, 1).unwrap();
    let submitter = Arc::clone(&pool);
    // The queue is full: this one waits for room when the panic comes, or is submitted after it.
    let feeder = std::thread::spawn(move || (2..10).find_map(|job| submitter.submit(job, 1).err()));
    assert_eq!(pool.next().unwrap(), Some(0));
    go.send(()).unwrap();
    let error = PoolError::Panicked { message: "job 1 went wrong".into() };
    assert_eq!(pool.next(), Err(error.clone()));
    assert_eq!(feeder.join().unwrap(), Some(error.clone()));
    assert_eq!(pool.next(), Err(error));
}

#[test]
fn close_lets_everything_submitted_finish() {
    let pool = Pool::start(config(3, 1 << 20, 100), || |job: usize| job).unwrap();
    (0..50).for_each(|job| pool.submit(job, 1).unwrap());
    pool.close();
    assert_eq!(pool.submit(50, 1), Err(PoolError::Closed));
    for job in 0..50 {
        assert_eq!(pool.next().unwrap(), Some(job));
    }
    assert_eq!(pool.next().unwrap(), None);
    assert_eq!(pool.next().unwrap(), None);
}

#[test]
fn dropping_the_pool_ends_its_threads_and_drops_waiting_jobs() {
    let alive = Arc::new(());
    let started = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&started);
    let pool = Pool::start(config(1, 1 << 20, 100), move || {
        let seen = Arc::clone(&seen);
        move |job: Arc<()>| {
            seen.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            drop(job);
        }
    })
    .unwrap();
    (0..100).for_each(|_| pool.submit(Arc::clone(&alive), 1).unwrap());
    while !started.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    drop(pool);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn threads_bear_the_name_that_operators_look_for() {
    let pool = Pool::start(config(2, 1, 1), || |(): ()| std::thread::current().name().map(str::to_owned)).unwrap();
    pool.submit((), 1).unwrap();
    let name = pool.next().unwrap().flatten().unwrap();
    assert!(name.starts_with("tg-cpu-"), "{name}");
}
