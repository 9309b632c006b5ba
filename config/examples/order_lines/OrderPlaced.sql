INSERT INTO order_lines (order_id, line, sku, quantity)
SELECT :stream_id, item.line, item.sku, item.quantity
FROM JSON_TABLE(:data.lines, '$[*]' COLUMNS (
         line     FOR ORDINALITY,
         sku      VARCHAR(40) PATH '$.sku' ERROR ON EMPTY ERROR ON ERROR,
         quantity INT PATH '$.quantity' ERROR ON EMPTY ERROR ON ERROR
     )) AS item;
