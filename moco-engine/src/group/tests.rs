//! Processes of a training in one process: they find each other, exchange rows, and learn who is lost.

use super::*;
use crate::device::Cpu;
use crate::ops::gather_rows;

const SOON: Duration = Duration::from_secs(60);

/// Runs `run` in every process of a group, each a thread here; results in their order.
fn processes<R: Send>(world: usize, run: impl Fn(Arc<Group>) -> R + Sync) -> Vec<R> {
    let meeting = Meeting::on_this_machine().unwrap();
    let address = format!("127.0.0.1:{}", meeting.port().unwrap());
    let mut meeting = Some(meeting);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                let place = Place { rank, world, local_rank: rank, local_world: world, address: address.clone() };
                let (meeting, run) = (if rank == 0 { meeting.take() } else { None }, &run);
                scope.spawn(move || run(Group::connect(&place, meeting, SOON, &mut || Ok(())).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn everybody_gets_what_everybody_gives() {
    let results = processes(3, |group| {
        let all = group.gather(&vec![group.rank() as u8; group.rank()]).unwrap();
        let first = group.from_first(&[7 + group.rank() as u8]).unwrap();
        group.leave();
        (all, first)
    });
    for result in results {
        assert_eq!(result, (vec![vec![], vec![1], vec![2, 2]], vec![7]));
    }
}

#[test]
fn devices_average_gather_and_exchange() {
    let order = [5u32, 0, 4, 1, 3, 2];
    let rows: Vec<f32> = (0..18).map(|v| v as f32 * 0.3).collect();
    let mut expected = vec![0.0; 18];
    gather_rows(&rows, &order, &mut expected);
    let results = processes(3, |group| {
        let (rank, mut cpu) = (group.rank(), Cpu::<crate::CpuKernels>::default());
        let mut collective = OverHost::new(&group);
        let mut values = vec![rank as f32, 0.1 * rank as f32];
        collective.mean(&mut cpu, &mut values).unwrap();
        let mut all = vec![0.0; 6];
        collective.gather(&mut cpu, &[rank as f32, 10.0][..], &mut all[..]).unwrap();
        assert_eq!(all, [0.0, 10.0, 1.0, 10.0, 2.0, 10.0]);

        let routes = Routes::new(&order, rank, 3).unwrap();
        let own = &rows[rank * 6..][..6];
        let (mut sent, mut received, mut placed) = (vec![0.0; 6], vec![0.0; 6], vec![0.0; 6]);
        gather_rows(own, routes.sent(), &mut sent);
        let [to, from] = routes.counts(3);
        collective.exchange(&mut cpu, &sent[..], &to, &mut received[..], &from).unwrap();
        crate::ops::scatter_rows(&received, routes.received(), &mut placed);
        group.leave();
        (values, placed)
    });
    let (means, rows): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    assert_eq!(rows.concat(), expected);
    assert!((means[0][0] - 1.0).abs() < 1e-6 && (means[0][1] - 0.1).abs() < 1e-6, "{means:?}");
    assert!(means.iter().all(|m| *m == means[0]));
}

#[test]
fn processes_that_are_out_of_step_or_of_other_sizes_are_told() {
    let errors = processes(2, |group| match group.rank() {
        0 => group.gather(&[]).map(|_| ()).unwrap_err().to_string(),
        _ => group.mean(&mut [1.0]).unwrap_err().to_string(),
    });
    assert!(errors[0].contains("out of step"), "{errors:?}");
    let errors = processes(2, |group| group.mean(&mut vec![1.0; 1 + group.rank()]).unwrap_err().to_string());
    assert!(errors[0].contains("process 1") && errors[0].contains("expected 1 values, got 2"), "{errors:?}");
}

#[test]
fn a_failure_reaches_all_others_with_its_reason() {
    let errors = processes(3, |group| {
        if group.rank() == 1 {
            group.fail("no space left");
            return String::new();
        }
        // What nobody asks for would wait for ever.
        let (heard, hear) = std::sync::mpsc::channel();
        group.when_lost(move || heard.send(()).unwrap());
        let error = group.mean(&mut [1.0]).unwrap_err().to_string();
        hear.recv_timeout(SOON).unwrap();
        assert_eq!(group.gather(&[]).unwrap_err().to_string(), error);
        error
    });
    for error in [&errors[0], &errors[2]] {
        assert!(error.contains("process 1 has failed: no space left"), "{errors:?}");
    }
}

#[test]
fn a_process_that_vanishes_is_named_to_all_others() {
    let meeting = Meeting::on_this_machine().unwrap();
    let address = format!("127.0.0.1:{}", meeting.port().unwrap());
    let of = |rank| Place { rank, world: 3, local_rank: rank, local_world: 3, address: address.clone() };
    let places = [of(0), of(1), of(2)];
    std::thread::scope(|scope| {
        // As when it is killed: its connections close and nothing is said.
        scope.spawn(|| drop(meeting::meet(&places[2], None, SOON, &mut || Ok(())).unwrap()));
        let second = scope.spawn(|| {
            let group = Group::join(&places[1]).unwrap();
            group.gather(&[]).unwrap_err().to_string()
        });
        let first = Group::host(&places[0], meeting, &mut || Ok(())).unwrap();
        let errors = [first.gather(&[]).unwrap_err().to_string(), second.join().unwrap()];
        assert!(errors.iter().all(|e| e.contains("process 2 has gone away")), "{errors:?}");
    });
}

#[test]
fn who_leaves_is_not_lost() {
    let results = processes(2, |group| {
        if group.rank() == 1 {
            group.leave();
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(700));
        let still = group.check();
        group.leave();
        still
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[test]
fn who_does_not_come_is_named_and_waiting_ends_when_it_cannot_come() {
    let place = Place { rank: 0, world: 2, local_rank: 0, local_world: 2, address: "127.0.0.1:1".into() };
    let meeting = || Some(Meeting::on_this_machine().unwrap());
    let late = Group::connect(&place, meeting(), Duration::from_millis(50), &mut || Ok(()));
    assert!(late.err().unwrap().to_string().contains("process 1 of 2 has not come"));
    let mut ended = || Err(Error::Group("process 1 has ended".into()));
    let error = Group::host(&place, meeting().unwrap(), &mut ended).err().unwrap().to_string();
    assert_eq!(error, "process 1 has ended");
    let other = Place { rank: 1, ..place };
    let alone = Group::connect(&other, None, Duration::from_millis(100), &mut || Ok(()));
    let error = alone.err().unwrap().to_string();
    assert!(error.contains("process 1 of 2 at 127.0.0.1:1") && error.contains("MASTER_PORT"), "{error}");
}

#[test]
fn strangers_at_the_door_do_no_harm() {
    use std::io::Write;
    let meeting = Meeting::on_this_machine().unwrap();
    let port = meeting.port().unwrap();
    let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let place = |rank| Place { rank, world: 2, local_rank: 0, local_world: 2, address: format!("127.0.0.1:{port}") };
    std::thread::scope(|scope| {
        let (other, own) = (place(1), place(0));
        scope.spawn(move || Group::join(&other).unwrap().from_first(&[]).unwrap());
        let group = Group::host(&own, meeting, &mut || Ok(())).unwrap();
        assert_eq!(group.from_first(b"x").unwrap(), b"x");
        group.leave();
    });
}

#[cfg(feature = "cuda-emulation")]
#[test]
fn emulated_gpus_of_two_processes_average_over_the_host() {
    use crate::cuda::EmulatedCuda;
    use crate::{Device, Kernels};
    let means = processes(2, |group| {
        let mut device = EmulatedCuda::<f32>::emulated().unwrap();
        let mut collective = device.collective(&group).unwrap();
        let mut memory = device.buffer(vec![group.rank() as f32, 4.0]).unwrap();
        let view = <EmulatedCuda<f32> as Device>::Kernels::view_mut(&mut memory, 2);
        collective.mean(&mut device, view).unwrap();
        let values = device.download(view).unwrap().into_owned();
        group.leave();
        values
    });
    assert_eq!(means, [[0.5, 4.0], [0.5, 4.0]]);
}
