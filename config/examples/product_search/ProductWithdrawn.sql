DELETE FROM product_search WHERE product_id = :stream_id;
