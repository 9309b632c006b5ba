DELETE FROM open_carts WHERE cart_id = :stream_id;
