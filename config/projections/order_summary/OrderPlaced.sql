INSERT INTO order_summary
    (order_id, customer_id, customer_name, status, currency, total, placed_at, updated_at)
VALUES
    (:stream_id, :data.customer.id, :data.customer.name, 'placed', :data.currency, :data.total,
     :occurred_at, :occurred_at);
