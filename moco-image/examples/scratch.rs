//! scratch
use moco_image::*;
fn main() {
    let mut a = std::env::args().skip(1);
    let out = a.next().unwrap();
    for f in a {
        let t = std::time::Instant::now();
        let b = std::fs::read(&f).unwrap();
        let lim = Limits { max_pixels: 60_000_000, ..Limits::default() };
        match std::panic::catch_unwind(|| decode(&b, &lim)) {
            Ok(Ok(i)) => {
                let name = f.replace('/', "_");
                if out != "-" {
                    std::fs::write(format!("{out}/{name}.raw"), i.data()).unwrap();
                }
                println!(
                    "ok\t{f}\t{}\t{}\t{}\t{:.1}ms",
                    i.width(),
                    i.height(),
                    i.channels(),
                    t.elapsed().as_secs_f64() * 1e3
                );
            }
            Ok(Err(e)) => println!("err\t{f}\t{e}\t{:.1}ms", t.elapsed().as_secs_f64() * 1e3),
            Err(_) => println!("PANIC\t{f}"),
        }
    }
}
