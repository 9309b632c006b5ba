-- Thirty read models as people write them: after the documentation of Spatie's event sourcing, EventSauce,
-- Marten, EventStoreDB, Axon, message-db and XES (process mining), after double-entry accounting, and after common
-- shop, booking and support systems. A line `=== name: categories` begins a projection, and a line `--- name`
-- one of its files.

=== spatie_accounts: account
--- tables
CREATE TABLE accounts (
    uuid    VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    name    VARCHAR(100) NOT NULL,
    balance DECIMAL(14, 2) NOT NULL DEFAULT 0,
    is_low  TINYINT(1) NOT NULL DEFAULT 0,
    limit_hits INT NOT NULL DEFAULT 0
);
--- AccountCreated
INSERT INTO accounts (uuid, name) VALUES (:stream_id, TRIM(:data.name));
--- MoneyAdded
UPDATE accounts SET balance = balance + :data.amount, is_low = balance < 0 WHERE uuid = :stream_id;
--- MoneySubtracted
UPDATE accounts SET balance = balance - :data.amount, is_low = IF(balance < 0, 1, 0) WHERE uuid = :stream_id;
--- AccountLimitHit
UPDATE accounts SET limit_hits = limit_hits + 1 WHERE uuid = :stream_id;
--- AccountDeleted
DELETE FROM accounts WHERE uuid = :stream_id;

=== spatie_transaction_counts: account
--- tables
CREATE TABLE transaction_counts (
    uuid  VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    count INT NOT NULL DEFAULT 0,
    largest DECIMAL(14, 2) NOT NULL DEFAULT 0,
    last_at DATETIME(6) NULL
);
--- MoneyAdded
INSERT INTO transaction_counts (uuid, count, largest, last_at)
VALUES (:stream_id, 1, :data.amount, :occurred_at)
ON DUPLICATE KEY UPDATE count = count + 1, largest = GREATEST(largest, VALUES(largest)), last_at = VALUES(last_at);
--- MoneySubtracted
INSERT INTO transaction_counts (uuid, count, last_at) VALUES (:stream_id, 1, :occurred_at)
ON DUPLICATE KEY UPDATE count = count + 1, last_at = VALUES(last_at);

=== eventsauce_signups: signup
--- tables
CREATE TABLE signups (
    id           VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    email        VARCHAR(254) NULL,
    email_domain VARCHAR(254) NULL,
    state        ENUM('started', 'verified', 'completed') NOT NULL,
    started_at   DATETIME(6) NOT NULL,
    minutes      INT NULL
);
--- SignupStarted
INSERT INTO signups (id, state, started_at) VALUES (:stream_id, 'started', :occurred_at);
--- EmailSpecified
UPDATE signups SET email = LOWER(:data.email), email_domain = SUBSTRING_INDEX(LOWER(:data.email), '@', -1)
WHERE id = :stream_id;
--- EmailVerified
UPDATE signups SET state = 'verified' WHERE id = :stream_id AND state = 'started';
--- SignupCompleted
UPDATE signups SET state = 'completed', minutes = TIMESTAMPDIFF(MINUTE, started_at, :occurred_at)
WHERE id = :stream_id;

=== marten_trips: trip
--- tables
CREATE TABLE trips (
    id          VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    started_on  DATE NULL,
    ended_on    DATE NULL,
    days        INT NULL,
    travelled   DECIMAL(10, 2) NOT NULL DEFAULT 0,
    state       VARCHAR(40) NULL,
    is_active   BOOLEAN NOT NULL DEFAULT TRUE
);
--- TripStarted
INSERT INTO trips (id, started_on) VALUES (:stream_id, :data.day);
--- Travel
UPDATE trips
SET travelled = travelled + CASE :data.direction WHEN 'north' THEN :data.distance WHEN 'south' THEN -:data.distance ELSE 0 END,
    state = COALESCE(:data.state?, state)
WHERE id = :stream_id;
--- TripEnded
UPDATE trips SET ended_on = :data.day, days = DATEDIFF(:data.day, started_on) + 1, is_active = FALSE WHERE id = :stream_id;
--- TripAborted
DELETE FROM trips WHERE id = :stream_id;

=== marten_quest_party: quest
--- tables
CREATE TABLE quest_party (
    id       VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    name     VARCHAR(100) NOT NULL,
    members  JSON NOT NULL,
    size     INT NOT NULL DEFAULT 0
);
--- QuestStarted
INSERT INTO quest_party (id, name, members) VALUES (:stream_id, :data.name, JSON_ARRAY());
--- MembersJoined
UPDATE quest_party SET size = size + JSON_LENGTH(:data.members), members = JSON_MERGE_PRESERVE(members, :data.members)
WHERE id = :stream_id;
--- MemberDeparted
UPDATE quest_party SET size = size - 1, members = JSON_ARRAY_APPEND(members, '$', CONCAT('-', :data.member))
WHERE id = :stream_id;

=== marten_incidents: incident
--- tables
CREATE TABLE helpdesk (
    id         VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    customer   VARCHAR(64) NOT NULL,
    category   VARCHAR(20) NULL,
    priority   VARCHAR(10) NOT NULL DEFAULT 'unknown',
    status     VARCHAR(20) NOT NULL,
    notes      INT NOT NULL DEFAULT 0,
    is_pending_answer BOOLEAN NOT NULL DEFAULT FALSE,
    version    INT NOT NULL
);
--- IncidentLogged
INSERT INTO helpdesk (id, customer, status, version) VALUES (:stream_id, :data.customer, 'pending', :stream_version);
--- IncidentCategorised
UPDATE helpdesk SET category = :data.category, version = :stream_version WHERE id = :stream_id;
--- IncidentPrioritised
UPDATE helpdesk SET priority = IFNULL(:data.priority, priority), version = :stream_version WHERE id = :stream_id;
--- AgentResponded
UPDATE helpdesk SET notes = notes + 1, is_pending_answer = FALSE, version = :stream_version WHERE id = :stream_id;
--- CustomerResponded
UPDATE helpdesk SET notes = notes + 1, is_pending_answer = (:data.visible AND status <> 'closed'), version = :stream_version
WHERE id = :stream_id;
--- IncidentClosed
UPDATE helpdesk SET status = 'closed', version = :stream_version WHERE id = :stream_id AND status IN ('pending', 'resolved');

=== eventstore_carts: cart
--- tables
CREATE TABLE cart_details (
    cart_id    VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    client_id  VARCHAR(64) NULL,
    status     VARCHAR(20) NOT NULL,
    total      DECIMAL(14, 2) NOT NULL DEFAULT 0,
    items      INT NOT NULL DEFAULT 0
);
CREATE TABLE cart_products (
    cart_id    VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    product_id VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    quantity   INT NOT NULL,
    PRIMARY KEY (cart_id, product_id)
);
--- CartOpened
INSERT INTO cart_details (cart_id, client_id, status) VALUES (:stream_id, :data.client_id, 'pending');
--- ProductAdded
INSERT INTO cart_products (cart_id, product_id, quantity) VALUES (:stream_id, :data.product, :data.quantity) AS new
ON DUPLICATE KEY UPDATE quantity = cart_products.quantity + new.quantity;
UPDATE cart_details SET total = total + :data.quantity * :data.price, items = items + :data.quantity WHERE cart_id = :stream_id;
--- ProductRemoved
UPDATE cart_products SET quantity = quantity - :data.quantity WHERE cart_id = :stream_id AND product_id = :data.product;
DELETE FROM cart_products WHERE cart_id = :stream_id AND product_id = :data.product AND quantity <= 0;
UPDATE cart_details SET total = total - :data.quantity * :data.price, items = items - :data.quantity WHERE cart_id = :stream_id;
--- CartConfirmed
UPDATE cart_details SET status = 'confirmed' WHERE cart_id = :stream_id;

=== axon_gift_cards: card
--- tables
CREATE TABLE card_summary (
    id        VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    initial   INT NOT NULL,
    remaining INT NOT NULL,
    redeemed  INT NOT NULL DEFAULT 0,
    issued_at DATETIME(6) NOT NULL,
    used_up_at DATETIME(6) NULL
);
--- Issued
INSERT INTO card_summary (id, initial, remaining, issued_at) VALUES (:stream_id, :data.amount, :data.amount, :occurred_at);
--- Redeemed
UPDATE card_summary
SET remaining = remaining - :data.amount, redeemed = redeemed + 1, used_up_at = IF(remaining = 0, :occurred_at, used_up_at)
WHERE id = :stream_id;

=== messagedb_video_views: video
--- tables
CREATE TABLE videos (
    id    VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    owner VARCHAR(64) NULL,
    name  VARCHAR(200) NULL,
    views BIGINT NOT NULL DEFAULT 0,
    last_position BIGINT NOT NULL DEFAULT 0
);
CREATE TABLE pages (
    page VARCHAR(40) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    views BIGINT NOT NULL
);
--- VideoPublished
INSERT INTO videos (id, owner, name) VALUES (:stream_id, :data.owner_id, COALESCE(:data.name?, 'Untitled'));
--- VideoNamed
UPDATE videos SET name = :data.name WHERE id = :stream_id AND last_position < :position;
--- VideoViewed
UPDATE videos SET views = views + 1, last_position = GREATEST(last_position, :position) WHERE id = :stream_id;
INSERT INTO pages (page, views) VALUES ('home', 1) ON DUPLICATE KEY UPDATE views = views + 1;

=== xes_cases: case
--- tables
CREATE TABLE cases (
    case_id       VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    first_activity VARCHAR(60) NOT NULL,
    last_activity VARCHAR(60) COLLATE utf8mb4_0900_bin NOT NULL,
    previous_activity VARCHAR(60) COLLATE utf8mb4_0900_bin NULL,
    started_at    DATETIME(6) NOT NULL,
    last_at       DATETIME(6) NOT NULL,
    events        INT NOT NULL DEFAULT 1,
    loops         INT NOT NULL DEFAULT 0,
    seconds       BIGINT NOT NULL DEFAULT 0,
    variant       TEXT NOT NULL
);
--- default
INSERT INTO cases (case_id, first_activity, last_activity, started_at, last_at, variant)
VALUES (:stream_id, :event_type, :event_type, :occurred_at, :occurred_at, :event_type)
ON DUPLICATE KEY UPDATE
    loops = loops + (last_activity = VALUES(last_activity)),
    previous_activity = last_activity,
    last_activity = VALUES(last_activity),
    seconds = TIMESTAMPDIFF(SECOND, started_at, VALUES(last_at)),
    last_at = VALUES(last_at),
    events = events + 1,
    variant = LEFT(CONCAT(variant, '>', :event_type), 2000);

=== xes_previous: case
--- tables
CREATE TABLE handovers (
    case_id  VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    previous VARCHAR(60) COLLATE utf8mb4_0900_bin NULL,
    last     VARCHAR(60) COLLATE utf8mb4_0900_bin NULL,
    handovers INT NOT NULL DEFAULT 0
);
--- CaseOpened
INSERT INTO handovers (case_id, last) VALUES (:stream_id, :data.resource?);
--- Assigned
UPDATE handovers SET handovers = handovers + (NOT (last <=> :data.resource)), previous = last, last = :data.resource WHERE case_id = :stream_id;

=== xes_activities: case
--- tables
CREATE TABLE activity_stats (
    activity   VARCHAR(60) COLLATE utf8mb4_0900_bin NOT NULL,
    resource   VARCHAR(60) COLLATE utf8mb4_0900_bin NOT NULL,
    month      CHAR(7) COLLATE utf8mb4_0900_bin NOT NULL,
    events     INT NOT NULL,
    cost       DECIMAL(14, 2) NOT NULL,
    weekend    INT NOT NULL,
    PRIMARY KEY (activity, resource, month)
);
--- default
INSERT INTO activity_stats (activity, resource, month, events, cost, weekend)
VALUES (:event_type, COALESCE(:data.resource?, '(none)'), DATE_FORMAT(:occurred_at, '%Y-%m'), 1, COALESCE(:data.cost?, 0),
        IF(WEEKDAY(:occurred_at) >= 5, 1, 0)) AS new
ON DUPLICATE KEY UPDATE events = activity_stats.events + 1, cost = activity_stats.cost + new.cost,
                        weekend = activity_stats.weekend + new.weekend;

=== ledger_balances: entry
--- tables
CREATE TABLE balances (
    account VARCHAR(20) COLLATE utf8mb4_0900_bin NOT NULL,
    period  CHAR(7) COLLATE utf8mb4_0900_bin NOT NULL,
    debit   DECIMAL(18, 2) NOT NULL DEFAULT 0,
    credit  DECIMAL(18, 2) NOT NULL DEFAULT 0,
    PRIMARY KEY (account, period)
);
--- AmountPosted
INSERT INTO balances (account, period, debit) VALUES (:data.debit_account, DATE_FORMAT(:data.booked_on, '%Y-%m'), :data.amount)
ON DUPLICATE KEY UPDATE debit = debit + VALUES(debit);
INSERT INTO balances (account, period, credit) VALUES (:data.credit_account, DATE_FORMAT(:data.booked_on, '%Y-%m'), :data.amount)
ON DUPLICATE KEY UPDATE credit = credit + VALUES(credit);

=== ledger_lines: entry
--- tables
CREATE TABLE entry_lines (
    entry   VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    line    INT NOT NULL,
    account VARCHAR(20) NOT NULL,
    amount  DECIMAL(18, 2) NOT NULL,
    PRIMARY KEY (entry, line)
);
--- EntryPosted
INSERT INTO entry_lines (entry, line, account, amount)
SELECT :stream_id, item.line, item.account, item.amount
FROM JSON_TABLE(:data.lines, '$[*]' COLUMNS (
    line FOR ORDINALITY,
    account VARCHAR(20) PATH '$.account',
    amount DECIMAL(18, 2) PATH '$.amount'
)) AS item;
--- EntryReversed
DELETE FROM entry_lines WHERE entry = :stream_id;

=== invoices: invoice
--- tables
CREATE TABLE invoices (
    id        VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    number    VARCHAR(20) NOT NULL,
    net       DECIMAL(14, 2) NOT NULL,
    tax       DECIMAL(14, 2) NOT NULL,
    paid      DECIMAL(14, 2) NOT NULL DEFAULT 0,
    due_on    DATE NOT NULL,
    status    VARCHAR(20) NOT NULL DEFAULT 'open',
    settled_at DATETIME(6) NULL,
    days_late INT NULL
);
--- InvoiceIssued
INSERT INTO invoices (id, number, net, tax, due_on)
VALUES (:stream_id, UPPER(:data.number), :data.net, ROUND(:data.net * 0.19, 2), DATE_ADD(DATE(:occurred_at), INTERVAL 14 DAY));
--- PaymentReceived
UPDATE invoices
SET paid = paid + :data.amount,
    status = CASE WHEN paid >= net + tax THEN 'paid' WHEN paid > 0 THEN 'partial' ELSE status END,
    days_late = GREATEST(DATEDIFF(:occurred_at, due_on), 0),
    settled_at = IF(paid >= net + tax, :occurred_at, NULL)
WHERE id = :stream_id;
--- InvoiceCancelled
UPDATE invoices SET status = 'cancelled' WHERE id = :stream_id AND NOT (status = 'paid');

=== orders: order
--- tables
CREATE TABLE orders (
    id         VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    customer   VARCHAR(64) NOT NULL,
    currency   CHAR(3) NOT NULL DEFAULT 'EUR',
    total      DECIMAL(14, 2) NOT NULL,
    coupon     VARCHAR(40) NULL,
    channel    VARCHAR(20) NOT NULL,
    placed_on  DATE NOT NULL,
    status     VARCHAR(20) NOT NULL,
    previous_status VARCHAR(20) NULL,
    hours_to_ship INT NULL,
    placed_at  DATETIME(6) NOT NULL
);
--- OrderPlaced
INSERT INTO orders (id, customer, currency, total, coupon, channel, placed_on, status, placed_at)
VALUES (:stream_id, :data.customer.id, COALESCE(:data.currency?, 'EUR'), :data.total - COALESCE(:data.discount?, 0),
        NULLIF(:data.coupon?, ''), IF(:metadata.source? = 'api', 'api', 'web'), CAST(:occurred_at AS DATE), 'placed', :occurred_at);
--- OrderPaid
UPDATE orders SET previous_status = status, status = 'paid' WHERE id = :stream_id;
--- OrderShipped
UPDATE orders SET previous_status = status, status = 'shipped', hours_to_ship = TIMESTAMPDIFF(HOUR, placed_at, :occurred_at)
WHERE id = :stream_id;
--- OrderCancelled
UPDATE orders SET previous_status = status, status = CONCAT('cancelled:', REPLACE(COALESCE(:data.reason?, 'none'), ' ', '_'))
WHERE id = :stream_id AND status <> 'shipped';

=== order_lines_totals: order
--- tables
CREATE TABLE line_items (
    order_id VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    sku      VARCHAR(40) COLLATE utf8mb4_0900_bin NOT NULL,
    quantity INT NOT NULL,
    price    DECIMAL(12, 2) NOT NULL,
    PRIMARY KEY (order_id, sku)
);
CREATE TABLE line_totals (
    order_id VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    total_lines INT NOT NULL,
    total    DECIMAL(14, 2) NOT NULL
);
--- LineAdded
INSERT INTO line_items (order_id, sku, quantity, price) VALUES (:stream_id, :data.sku, :data.quantity, :data.price)
ON DUPLICATE KEY UPDATE quantity = quantity + VALUES(quantity), price = VALUES(price);
REPLACE INTO line_totals (order_id, total_lines, total)
SELECT :stream_id, COUNT(*), COALESCE(SUM(quantity * price), 0) FROM line_items WHERE order_id = :stream_id;
--- LineRemoved
DELETE FROM line_items WHERE order_id = :stream_id AND sku = :data.sku;
UPDATE line_totals SET total_lines = total_lines - 1,
    total = (SELECT COALESCE(SUM(quantity * price), 0) FROM line_items WHERE order_id = :stream_id)
WHERE order_id = :stream_id;

=== inventory: product
--- tables
CREATE TABLE stock (
    sku       VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    on_hand   INT NOT NULL DEFAULT 0,
    reserved  INT NOT NULL DEFAULT 0,
    available INT NOT NULL DEFAULT 0,
    is_out    BOOLEAN NOT NULL DEFAULT TRUE,
    value     DECIMAL(16, 4) NOT NULL DEFAULT 0
);
--- StockReceived
INSERT INTO stock (sku, on_hand, available, is_out, value)
VALUES (:stream_id, :data.quantity, :data.quantity, FALSE, :data.quantity * :data.unit_cost)
ON DUPLICATE KEY UPDATE on_hand = on_hand + VALUES(on_hand), available = on_hand - reserved, is_out = available <= 0,
                        value = value + VALUES(value);
--- StockReserved
UPDATE stock SET reserved = reserved + :data.quantity, available = on_hand - reserved, is_out = (available <= 0) WHERE sku = :stream_id;
--- StockShipped
UPDATE stock SET on_hand = on_hand - :data.quantity, reserved = GREATEST(reserved - :data.quantity, 0) WHERE sku = :stream_id;

=== bookings: room
--- tables
CREATE TABLE bookings (
    booking_id VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    room       VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    guest      VARCHAR(120) NOT NULL,
    arrives_on DATE NOT NULL,
    leaves_on  DATE NOT NULL,
    nights     INT NOT NULL,
    price      DECIMAL(10, 2) NOT NULL,
    checked_in BOOLEAN NOT NULL DEFAULT FALSE,
    INDEX by_room (room, arrives_on)
);
--- RoomBooked
INSERT INTO bookings (booking_id, room, guest, arrives_on, leaves_on, nights, price)
VALUES (:data.booking_id, :stream_id, CONCAT(:data.guest.first, ' ', :data.guest.last), :data.arrives_on, :data.leaves_on,
        DATEDIFF(:data.leaves_on, :data.arrives_on), DATEDIFF(:data.leaves_on, :data.arrives_on) * :data.rate);
--- GuestCheckedIn
UPDATE bookings SET checked_in = TRUE WHERE booking_id = :data.booking_id AND room = :stream_id;
--- BookingCancelled
DELETE FROM bookings WHERE booking_id = :data.booking_id;

=== tickets_sla: ticket
--- tables
CREATE TABLE ticket_sla (
    ticket     VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    priority   TINYINT NOT NULL,
    opened_at  DATETIME(6) NOT NULL,
    due_at     DATETIME(6) NOT NULL,
    first_reply_seconds INT NULL,
    replies    INT NOT NULL DEFAULT 0,
    breached   BOOLEAN NOT NULL DEFAULT FALSE,
    reopened   INT NOT NULL DEFAULT 0
);
--- TicketOpened
INSERT INTO ticket_sla (ticket, priority, opened_at, due_at)
VALUES (:stream_id, CASE :data.priority WHEN 'high' THEN 1 WHEN 'normal' THEN 2 ELSE 3 END, :occurred_at,
        :occurred_at + INTERVAL 1 DAY);
--- ReplySent
UPDATE ticket_sla
SET replies = replies + 1,
    first_reply_seconds = COALESCE(first_reply_seconds, TIMESTAMPDIFF(SECOND, opened_at, :occurred_at)),
    breached = breached OR :occurred_at > due_at
WHERE ticket = :stream_id;
--- TicketReopened
UPDATE ticket_sla SET reopened = reopened + 1, due_at = :occurred_at + INTERVAL priority * 8 HOUR WHERE ticket = :stream_id;

=== subscriptions_mrr: subscription
--- tables
CREATE TABLE mrr (
    subscription VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    plan     VARCHAR(40) NOT NULL,
    old_plan VARCHAR(40) NULL,
    monthly  DECIMAL(12, 2) NOT NULL,
    change_monthly DECIMAL(12, 2) NOT NULL DEFAULT 0,
    ends_on  DATE NULL,
    months   INT NULL,
    started_on DATE NOT NULL
);
--- SubscriptionStarted
INSERT INTO mrr (subscription, plan, monthly, started_on)
VALUES (:stream_id, :data.plan, IF(:data.interval = 'year', :data.price / 12, :data.price), DATE(:occurred_at));
--- PlanChanged
UPDATE mrr SET old_plan = plan, plan = :data.plan, change_monthly = :data.price - monthly, monthly = :data.price
WHERE subscription = :stream_id;
--- SubscriptionCancelled
UPDATE mrr SET ends_on = LAST_DAY(:occurred_at), months = TIMESTAMPDIFF(MONTH, started_on, :occurred_at) WHERE subscription = :stream_id;

=== users_profile: user
--- tables
CREATE TABLE profiles (
    user_id   VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    email     VARCHAR(254) NULL,
    old_email VARCHAR(254) NULL,
    name      VARCHAR(200) NULL,
    settings  JSON NOT NULL,
    tags      JSON NOT NULL,
    logins    INT NOT NULL DEFAULT 0,
    last_login_at TIMESTAMP(6) NULL,
    deleted_at DATETIME(6) NULL
);
--- UserRegistered
INSERT INTO profiles (user_id, email, name, settings, tags)
VALUES (:stream_id, LOWER(TRIM(:data.email)), NULLIF(TRIM(:data.name), ''), JSON_OBJECT('theme', 'light', 'locale', :data.locale), '[]');
--- EmailChanged
UPDATE profiles SET old_email = email, email = LOWER(:data.email) WHERE user_id = :stream_id;
--- SettingsChanged
UPDATE profiles SET settings = JSON_MERGE_PATCH(settings, :data.settings) WHERE user_id = :stream_id;
--- TagAdded
UPDATE profiles SET tags = JSON_ARRAY_APPEND(tags, '$', :data.tag) WHERE user_id = :stream_id;
--- UserLoggedIn
UPDATE profiles SET logins = logins + 1, last_login_at = :occurred_at WHERE user_id = :stream_id;
--- UserDeleted
UPDATE profiles SET email = NULL, name = NULL, settings = '{}', deleted_at = :occurred_at WHERE user_id = :stream_id AND deleted_at IS NULL;

=== user_emails_unique: user
--- tables
CREATE TABLE emails (
    email   VARCHAR(254) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    user_id VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    INDEX by_user (user_id)
);
--- UserRegistered
INSERT IGNORE INTO emails (email, user_id) VALUES (LOWER(:data.email), :stream_id);
--- EmailChanged
DELETE FROM emails WHERE user_id = :stream_id;
INSERT IGNORE INTO emails (email, user_id) VALUES (LOWER(:data.email), :stream_id);
--- UserDeleted
DELETE FROM emails WHERE user_id = :stream_id;

=== audit_log: user, order, invoice
--- tables
CREATE TABLE audit_log (
    event_id BINARY(16) PRIMARY KEY,
    category VARCHAR(40) NOT NULL,
    stream   VARCHAR(255) NOT NULL,
    actor    VARCHAR(64) NULL,
    action   VARCHAR(127) NOT NULL,
    at       DATETIME(3) NOT NULL,
    details  JSON NOT NULL
);
--- default
INSERT INTO audit_log (event_id, category, stream, actor, action, at, details)
VALUES (UUID_TO_BIN(:event_id), SUBSTRING_INDEX(:stream_id, '-', 1), :stream_id, COALESCE(:metadata.user?, 'system'), :event_type,
        :occurred_at, :data);

=== daily_signups: user
--- tables
CREATE TABLE daily_signups (
    day     DATE NOT NULL,
    country CHAR(2) COLLATE utf8mb4_0900_bin NOT NULL,
    signups INT NOT NULL DEFAULT 0,
    deleted INT NOT NULL DEFAULT 0,
    PRIMARY KEY (day, country)
);
--- UserRegistered
INSERT INTO daily_signups (day, country, signups) VALUES (DATE(:occurred_at), IFNULL(:data.country?, '??'), 1)
ON DUPLICATE KEY UPDATE signups = signups + 1;
--- UserDeleted
INSERT INTO daily_signups SET day = DATE(:occurred_at), country = UPPER(COALESCE(:data.country?, '??')), deleted = 1
ON DUPLICATE KEY UPDATE deleted = deleted + 1;

=== sensor_readings: sensor
--- tables
CREATE TABLE sensors (
    sensor     VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    latest DECIMAL(12, 4) NULL,
    previous DECIMAL(12, 4) NULL,
    minimum    DECIMAL(12, 4) NULL,
    maximum    DECIMAL(12, 4) NULL,
    readings   INT NOT NULL DEFAULT 0,
    alarms     INT NOT NULL DEFAULT 0,
    last_at    DATETIME(6) NULL,
    gap_seconds INT NULL
);
--- ReadingTaken
INSERT INTO sensors (sensor, latest, minimum, maximum, readings, last_at)
VALUES (:stream_id, :data.value, :data.value, :data.value, 1, :occurred_at) AS new
ON DUPLICATE KEY UPDATE
    previous = sensors.latest,
    latest = new.latest,
    minimum = LEAST(COALESCE(sensors.minimum, new.minimum), new.minimum),
    maximum = GREATEST(COALESCE(sensors.maximum, new.maximum), new.maximum),
    readings = sensors.readings + 1,
    alarms = alarms + (:data.value > 100),
    gap_seconds = TIMESTAMPDIFF(SECOND, sensors.last_at, new.last_at),
    last_at = new.last_at;

=== shipments: shipment
--- tables
CREATE TABLE shipments (
    id         VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    order_id   VARCHAR(64) NOT NULL,
    carrier    VARCHAR(40) NULL,
    tracking   VARCHAR(80) NULL,
    scans      INT NOT NULL DEFAULT 0,
    last_place VARCHAR(80) NULL,
    route      TEXT NOT NULL,
    delivered_at DATETIME(6) NULL,
    is_late    BOOLEAN NULL,
    promised_on DATE NULL
);
--- ShipmentCreated
INSERT INTO shipments (id, order_id, carrier, route, promised_on)
VALUES (:stream_id, :data.order_id, COALESCE(NULLIF(:data.carrier?, ''), 'unknown'), '', :data.promised_on?);
--- Scanned
UPDATE shipments
SET scans = scans + 1, last_place = :data.place, route = CONCAT(route, IF(route = '', '', ' > '), :data.place),
    tracking = IFNULL(tracking, :data.tracking?)
WHERE id = :stream_id;
--- Delivered
UPDATE shipments SET delivered_at = :occurred_at, is_late = DATE(:occurred_at) > promised_on WHERE id = :stream_id;

=== votes: post
--- tables
CREATE TABLE posts (
    post     VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    up       INT NOT NULL DEFAULT 0,
    down     INT NOT NULL DEFAULT 0,
    score    INT NOT NULL DEFAULT 0
);
CREATE TABLE voters (
    post  VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    voter VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    vote  TINYINT NOT NULL,
    PRIMARY KEY (post, voter)
);
--- Posted
INSERT INTO posts (post) VALUES (:stream_id);
--- Voted
REPLACE INTO voters (post, voter, vote) VALUES (:stream_id, :data.voter, IF(:data.direction = 'up', 1, -1));
UPDATE posts SET up = up + (:data.direction = 'up'), down = down + (:data.direction <> 'up'), score = up - down WHERE post = :stream_id;

=== customer_snapshot: customer, order
--- tables
CREATE TABLE customers (
    id   VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    name VARCHAR(200) NOT NULL
);
CREATE TABLE customer_orders (
    order_id VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    customer VARCHAR(64) COLLATE utf8mb4_0900_bin NOT NULL,
    name     VARCHAR(200) NULL,
    INDEX by_customer (customer)
);
--- CustomerNamed
INSERT INTO customers (id, name) VALUES (:stream_id, :data.name) ON DUPLICATE KEY UPDATE name = VALUES(name);
UPDATE customer_orders SET name = :data.name WHERE customer = :stream_id;
--- OrderPlaced
INSERT INTO customer_orders (order_id, customer, name)
VALUES (:stream_id, :data.customer, (SELECT name FROM customers WHERE id = :data.customer));

=== top_spenders: order
--- tables
CREATE TABLE spenders (
    customer VARCHAR(64) COLLATE utf8mb4_0900_bin PRIMARY KEY,
    orders   INT NOT NULL DEFAULT 0,
    spent    DECIMAL(14, 2) NOT NULL DEFAULT 0,
    average  DECIMAL(14, 4) NULL,
    tier     VARCHAR(10) NOT NULL DEFAULT 'bronze'
);
--- OrderPaid
INSERT INTO spenders (customer, orders, spent, average) VALUES (:data.customer, 1, :data.amount, :data.amount)
ON DUPLICATE KEY UPDATE
    orders = orders + 1,
    spent = spent + VALUES(spent),
    average = spent / orders,
    tier = CASE WHEN spent >= 10000 THEN 'gold' WHEN spent >= 1000 THEN 'silver' ELSE 'bronze' END;
--- OrderRefunded
UPDATE spenders SET spent = GREATEST(spent - :data.amount, 0) WHERE customer = :data.customer;
