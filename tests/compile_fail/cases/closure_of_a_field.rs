use manyhands::prelude::*;

struct Model {
    k: f64,
}

impl Model {
    fn run(&self, pool: &Pool<Processes>) {
        let _ = pool.map(closure!([self.k] |x: f64| x * k), [1.0]);
        let _ = pool.map(closure!([self] |x: f64| x * self.k), [1.0]);
        let k = self.k;
        let _ = pool.map(closure!([&k] |x: f64| x * k), [1.0]);
        let _ = pool.map(closure!([k = self.k] |x: f64| x * k), [1.0]);
    }
}

fn main() {
    Model { k: 2.0 }.run(&Pool::processes(2).unwrap());
}
