INSERT INTO seen (number, stream_id) VALUES (:data.number, :stream_id);
