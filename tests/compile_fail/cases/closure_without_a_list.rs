use manyhands::prelude::*;

fn main() {
    let factor = 2;
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(closure!(move |x: u32| x * factor), 0..3);
    let _ = pool.map(closure!(|x: u32| x + 1), 0..3);
    let _ = pool.map(closure!([factor] move |x: u32| x * factor), 0..3);
    let _ = pool.map(closure!(factor, |x: u32| x * factor), 0..3);
    let _ = pool.submit(closure!([factor] || *factor), ());
}
