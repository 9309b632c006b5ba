//! An imaginary shop.
//!
//! An order is placed, paid, packed and shipped, then paid again: it is a standing order. Some orders are
//! cancelled or refunded. Activity follows Zipf's law, as in real shops: a few orders and customers cause
//! most of the events.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use domain_events::StreamId;
use rand::RngExt;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, Zipf};
use uuid::Builder;

use crate::writers::NewEvent;

const FIRST_NAMES: [&str; 16] = [
    "Zoë",
    "Łukasz",
    "Søren",
    "José",
    "Chloé",
    "Jürgen",
    "Ngọc",
    "Aoife",
    "Иван",
    "Ελένη",
    "美咲",
    "Fatima",
    "Ola",
    "Siân",
    "Mehmet",
    "O'Neil",
];
const LAST_NAMES: [&str; 12] = [
    "Müller",
    "García",
    "Nowak",
    "Sørensen",
    "Nguyễn",
    "D'Angelo",
    "Иванова",
    "Παπαδοπούλου",
    "佐藤",
    "Smith",
    "Şahin",
    "Ó Briain",
];
const CARRIERS: [&str; 4] = ["DHL", "La Poste", "InPost", "ヤマト運輸"];
const COUNTRIES: [&str; 8] = ["DE", "FR", "PL", "DK", "ES", "IE", "GR", "JP"];
/// Title and price in cents.
const PRODUCTS: [(&str, i64); 10] = [
    ("Café crème, 1 kg", 1990),
    ("Smörgåsbord", 4999),
    ("Crème brûlée torch", 2450),
    ("Jalapeño seeds", 349),
    ("抹茶", 1275),
    ("Doppelgänger mirror", 12_900),
    ("Naïve Bayes, 2nd edition", 3995),
    ("Æbleskiver pan", 5725),
    ("\"Quoted\" mug", 899),
    ("Piñata 🎉", 1605),
];
/// The type of an event and its data, as JSON.
type TypeAndData = (&'static str, String);

/// Average seconds between two events.
const MEAN_GAP_SECONDS: f64 = 30.0;

/// An endless series of events. The same seed gives the same series.
pub(crate) struct Shop {
    random: ChaCha8Rng,
    name: String,
    orders: Vec<Order>,
    /// Orders that can still have events.
    open: usize,
    activity: Zipf<f64>,
    customers: Zipf<f64>,
    gap: Exp<f64>,
    now: DateTime<Utc>,
}

#[derive(Clone, Copy, Default)]
struct Order {
    stage: Stage,
    customer: u32,
    total_cents: i64,
    parcels: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    New,
    Placed,
    Paid,
    Packed,
    Shipped,
    Closed,
}

impl Shop {
    /// A shop with `orders` orders, whose first event occurs at `start`.
    pub(crate) fn new(seed: u64, orders: u32, start: DateTime<Utc>) -> Self {
        let count = f64::from(orders);
        let zipf = |n: f64| Zipf::new(n.max(1.0), 1.1).expect("n is at least 1");
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            name: format!("{seed:x}"),
            orders: vec![Order::default(); orders as usize],
            open: orders as usize,
            activity: zipf(count),
            customers: zipf(count / 3.0),
            gap: Exp::new(1.0 / MEAN_GAP_SECONDS).expect("the rate is positive"),
            now: start,
        }
    }

    /// Picks an open order for the next event.
    fn pick(&mut self) -> usize {
        let index = sample(&self.activity, &mut self.random) - 1;
        let from_there = (index..self.orders.len()).chain(0..index);
        from_there.into_iter().find(|index| self.orders[*index].stage != Stage::Closed).unwrap_or(0)
    }

    fn next_event(&mut self, index: usize) -> TypeAndData {
        let mut order = self.orders[index];
        let chance = self.random.random_range(0..100);
        // The last open order stays open: the series must not end.
        let may_close = self.open > 1;
        let event = match order.stage {
            Stage::New | Stage::Closed => self.place(&mut order),
            Stage::Placed | Stage::Paid if chance < 4 && may_close => self.cancel(&mut order),
            Stage::Paid => {
                order.stage = Stage::Packed;
                order.parcels += 1;
                let grams = self.random.random_range(50..20_000);
                let parcel = order.parcels;
                ("OrderPacked", format!(r#"{{"parcel":{parcel},"weight_grams":{grams}}}"#))
            }
            Stage::Packed => {
                order.stage = Stage::Shipped;
                let number = self.random.random_range(0..1_000_000_000_u64);
                let carrier = CARRIERS.choose(&mut self.random).unwrap_or(&CARRIERS[0]);
                let data = format!(
                    r#"{{"parcel":{},"carrier":{},"tracking":"JJD{number:012}"}}"#,
                    order.parcels,
                    text(carrier)
                );
                ("OrderShipped", data)
            }
            Stage::Shipped if chance < 8 => self.refund(&mut order, may_close),
            Stage::Placed | Stage::Shipped => self.pay(&mut order),
        };
        self.orders[index] = order;
        event
    }

    fn place(&mut self, order: &mut Order) -> TypeAndData {
        order.stage = Stage::Placed;
        order.customer = u32::try_from(sample(&self.customers, &mut self.random)).unwrap_or(1);
        let lines: Vec<_> = (0..self.random.random_range(1..=5))
            .map(|_| {
                let (title, cents) = *PRODUCTS.choose(&mut self.random).unwrap_or(&PRODUCTS[0]);
                let quantity = self.random.random_range(1..=3);
                order.total_cents += cents * quantity;
                let (title, price) = (text(title), money(cents));
                format!(r#"{{"title":{title},"quantity":{quantity},"price":{price}}}"#)
            })
            .collect();
        let customer = order.customer as usize;
        let first = FIRST_NAMES[customer % FIRST_NAMES.len()];
        let last = LAST_NAMES[customer / FIRST_NAMES.len() % LAST_NAMES.len()];
        let data = format!(
            r#"{{"customer":{{"id":{id},"name":{name},"country":"{country}"}},"currency":"EUR","lines":[{lines}],"total":{total}}}"#,
            id = text(&self.customer(order)),
            name = text(&format!("{first} {last}")),
            country = COUNTRIES[customer % COUNTRIES.len()],
            lines = lines.join(","),
            total = money(order.total_cents),
        );
        ("OrderPlaced", data)
    }

    fn pay(&self, order: &mut Order) -> TypeAndData {
        order.stage = Stage::Paid;
        ("OrderPaid", self.payment(order, order.total_cents))
    }

    fn cancel(&mut self, order: &mut Order) -> TypeAndData {
        order.stage = Stage::Closed;
        self.open -= 1;
        let customer = text(&self.customer(order));
        ("OrderCancelled", format!(r#"{{"customer_id":{customer},"reason":"customer's wish"}}"#))
    }

    /// A refund of a part of the last payment, or all of it. Some refunds close the order.
    fn refund(&mut self, order: &mut Order, may_close: bool) -> TypeAndData {
        let cents = self.random.random_range(1..=order.total_cents);
        if may_close && self.random.random_range(0..4) == 0 {
            order.stage = Stage::Closed;
            self.open -= 1;
        }
        ("OrderRefunded", self.payment(order, cents))
    }

    fn payment(&self, order: &Order, cents: i64) -> String {
        let (customer, amount) = (text(&self.customer(order)), money(cents));
        format!(r#"{{"customer_id":{customer},"amount":{amount},"currency":"EUR"}}"#)
    }

    fn customer(&self, order: &Order) -> String {
        format!("c-{}-{:05}", self.name, order.customer)
    }
}

impl Iterator for Shop {
    type Item = NewEvent;

    fn next(&mut self) -> Option<NewEvent> {
        let index = self.pick();
        let (event_type, data) = self.next_event(index);
        let gap = self.gap.sample(&mut self.random);
        self.now += TimeDelta::from_std(std::time::Duration::from_secs_f64(gap)).ok()?;
        let event_id = Builder::from_random_bytes(self.random.random()).into_uuid();
        let occurred_at = self.now.to_rfc3339_opts(SecondsFormat::Micros, true);
        let json = format!(
            r#"{{"event_id":"{event_id}","type":"{event_type}","occurred_at":"{occurred_at}","data":{data}}}"#
        );
        let stream_id = StreamId::new(format!("order-{}-{index:06}", self.name)).ok()?;
        Some(NewEvent { stream_id, json, line: None })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a sample is a whole number from 1 to the number of orders"
)]
fn sample(distribution: &Zipf<f64>, random: &mut ChaCha8Rng) -> usize {
    (distribution.sample(random) as usize).max(1)
}

/// Cents as a JSON number with two digits after the point.
fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use chrono::TimeZone;
    use domain_events::Json;

    use super::*;

    fn shop(seed: u64, orders: u32) -> Shop {
        Shop::new(seed, orders, Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap())
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let events = |seed| shop(seed, 50).take(500).map(|event| event.json).collect::<Vec<_>>();
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }

    #[test]
    fn an_order_begins_with_being_placed_and_the_series_never_ends() {
        let mut streams: HashMap<StreamId, u32> = HashMap::new();
        for event in shop(1, 20).take(5_000) {
            Json::parse(event.json.as_str()).unwrap();
            let count = streams.entry(event.stream_id).or_default();
            *count += 1;
            assert_eq!(*count == 1, event.json.contains("\"type\":\"OrderPlaced\""));
        }
        assert!(streams.len() <= 20);
    }

    #[test]
    fn few_orders_make_most_of_the_events() {
        let mut streams: HashMap<StreamId, u32> = HashMap::new();
        for event in shop(1, 1_000).take(20_000) {
            *streams.entry(event.stream_id).or_default() += 1;
        }
        let mut counts: Vec<_> = streams.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert!(counts[..100].iter().sum::<u32>() > 10_000, "{:?}", &counts[..10]);
    }

    #[test]
    fn money_has_cents() {
        assert_eq!(
            (money(1990), money(5), money(100)),
            ("19.90".into(), "0.05".into(), "1.00".into())
        );
    }
}
