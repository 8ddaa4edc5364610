// OpenAI's own SDK for Node: a conversation of two turns, streamed or whole. Prints what the client has, as JSON.

import OpenAI from "openai";

const [baseURL, session, how] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "none", baseURL, defaultHeaders: { "X-Session-Id": session } });
const messages = [];
for (const content of ["What is 15 * 23?", "And now?"]) {
  messages.push({ role: "user", content });
  let text = "";
  if (how === "stream") {
    const stream = await client.chat.completions.create({ model: "gpt-3.5-turbo", messages, stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  } else {
    const completion = await client.chat.completions.create({ model: "gpt-3.5-turbo", messages });
    text = completion.choices[0].message.content;
  }
  messages.push({ role: "assistant", content: text });
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({ messages, models }));
