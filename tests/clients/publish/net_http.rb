# Ruby's Net::HTTP. The form is "form", "multipart", "file" (the text is a file of a multipart form) or "json".
require "json"
require "net/http"
require "stringio"

URL, FORM, CHANNEL, TYPE, *FILES = ARGV

def post(path, fields)
  uri = URI(URL + path)
  request = Net::HTTP::Post.new(uri)
  case FORM
  when "form"
    request.set_form_data(fields)
  when "json"
    request["Content-Type"] = "application/json"
    request.body = JSON.generate(fields)
  else
    parts = fields.map do |name, value|
      next [name, value] unless FORM == "file" && name == "data"
      [name, StringIO.new(value), { filename: "text.txt" }]
    end
    request.set_form(parts, "multipart/form-data")
  end
  response = Net::HTTP.start(uri.host, uri.port) { |http| http.request(request) }
  abort "status #{response.code}: #{response.body}" unless response.code == "200"
  response.body
end

token = post("/token/", { "userId" => "alex", "channel" => CHANNEL })
puts FORM == "json" ? JSON.parse(token)["token"] : token
FILES.each do |file|
  text = File.read(file, encoding: "UTF-8", mode: "rb")
  post("/emit/", { "userId" => "*", "channel" => CHANNEL, "event" => TYPE, "data" => text })
end
